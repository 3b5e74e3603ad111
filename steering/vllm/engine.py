"""The thread that owns vLLM: it hands requests over, steps, and turns what comes into events.

vLLM runs in this very process, so that programs, tables and encoders are the torch engine's own and nothing of a request is sent anywhere.
It admits, batches, keeps keys and values and samples; text is spelled and stopped here, as for every engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor

from indexer.subject import Tap
from schema.errors import InputError, ScopebaseError, WorkFailed
from schema.wire.steering import SteeringApplied
from steering.batch import Seat
from steering.desk import Desk
from steering.engine import Limits
from steering.hooks import Row, Steerer
from steering.queue import Line, divergence, log
from steering.sampler import Told
from steering.vllm.passes import Asked, Passes

Parameters = Callable[..., Any]
"""vLLM's `SamplingParams`."""


class VllmLine(Line):
    """A choice that vLLM generates."""

    def _applied(self) -> SteeringApplied | None:
        applied = super()._applied()
        return None if applied is None else applied.model_copy(update={"engine": "vllm"})


class VllmEngine:
    """See the module. `run`, `put`, `fault` and `close` are safe for any thread; the rest is the owner's.

    It is also what `Steerer` and `Live` want to know of a loaded model.
    """

    def __init__(
        self, llm: Any, parameters: Parameters, n_layers: int, d_model: int, limits: Limits, ends: frozenset[int]
    ) -> None:
        """
        Args:
            llm: vLLM's `LLMEngine`, in this process.
        """
        runner = llm.model_executor.driver_worker.worker.model_runner
        self.limits = limits
        self.device: torch.device = runner.device
        self.d_model, self.deepest = d_model, n_layers - 1
        self.vocabulary = int(runner.model_config.get_vocab_size())
        self._llm, self._parameters, self._ends = llm, parameters, ends
        self._passes = Passes(runner, n_layers)
        self.blocks = self._passes.blocks
        self._desk = Desk(limits.rows, limits.queue)
        self.run, self.put = self._desk.run, self._desk.put
        self._asked: dict[str, Asked] = {}
        self._numbers = count()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self, steerer: Steerer) -> None:
        """Begins to work. The steerer was made over this engine."""
        self._passes.begin(steerer.steering)
        self._thread.start()

    def fault(self) -> str | None:
        return self._desk.fault

    def close(self, seconds: float) -> None:
        """See `schema.generation.Generator.close`."""
        self._desk.close(seconds)
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds + 60)

    def read(self, ids: Tensor, taps: Mapping[int, Tap]) -> None:
        """See `indexer.subject.Subject.read`."""
        rows = [Row(None, tuple(row), 0, len(row)) for row in ids.tolist()]
        for layer, stream in self.streams(rows, list(taps)).items():
            taps[layer](stream)

    def streams(self, rows: Sequence[Row], layers: Sequence[int]) -> dict[int, Tensor]:
        """Layer -> the stream (n_rows, n_tokens, d_model) after it, of rows of one length.

        Raises:
            WorkFailed: vLLM failed on it.
        """
        asked = [self._ask(Asked(Seat(list(row.ids), row.program), taps=frozenset(layers))) for row in rows]
        self._finish(asked)
        return {layer: torch.stack([torch.cat(each.kept[layer]) for each in asked]) for layer in layers}

    def score(self, texts: Sequence[Sequence[int]], firsts: Sequence[int]) -> list[Tensor]:
        """(n,) log-probabilities of each text's tokens from place `first` on, unsteered. For errors see `streams`."""
        asked = [self._ask(Asked(Seat(list(ids)), scored=first)) for ids, first in zip(texts, firsts, strict=True)]
        self._finish(asked)
        return [torch.cat(each.scores) if each.scores else torch.empty(0) for each in asked]

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while self._gather():
                self._admit()
                self._step()
        except Exception as error:
            log.exception("the engine stopped")
            self._desk.fault = f"the engine stopped on a fault of its own ({type(error).__name__}); restart the service"
            self._fail_all(WorkFailed(self._desk.fault))
        self._llm.engine_core.shutdown()

    def _gather(self) -> bool:
        """What arrived, and what is over; False when it is time to end."""
        if not self._desk.attend(busy=bool(self._asked)):
            return False
        self._drop()
        if self._desk.overdue:
            self._fail_all(WorkFailed("the service was shut down before this text was complete; try again"))
            self._drop()
        return True

    def _drop(self) -> None:
        """Gives back the places of requests that are over."""
        over = [
            each
            for each in self._asked.values()
            if each.line is not None and (each.line.finish is not None or each.line.work.over)
        ]
        self._abort(over)
        if over:
            self._desk.ended()
        self._desk.taken = len(self._asked)

    def _abort(self, over: Iterable[Asked]) -> None:
        names = {id(each) for each in over}
        gone = [name for name, each in self._asked.items() if id(each) in names]
        if gone:
            self._llm.abort_request(gone)
        for name in gone:
            self._passes.asked.pop(self._asked.pop(name).id, None)

    def _admit(self) -> None:
        """Hands over what waits, first come first served, as far as rows last. vLLM finds the memory."""
        waiting = self._desk.waiting
        while waiting and len(self._asked) + len(waiting[0].seats) <= self.limits.rows:
            line = waiting.popleft()
            line.work.begun = True
            shadow = None
            try:
                if line.shadow is not None:  # before its choice, so that its first token is never later
                    shadow = self._ask(Asked(line.shadow, line, weighs=True))
                self._ask(Asked(line.seat, line, weighs=shadow is not None, shadow=shadow))
            except InputError as error:
                line.work.fail(error)

    def warm(self) -> None:
        """Has vLLM compile what it compiles for the first request that asks for log-probabilities, which takes seconds."""
        self._finish([self._ask(Asked(Seat([self.vocabulary // 2])), likeliest=2)])

    def _ask(self, asked: Asked, likeliest: int | None = None) -> Asked:
        """
        Args:
            likeliest: log-probabilities that nobody reads.

        Raises:
            InputError: vLLM refuses it.
        """
        line, name = asked.line, str(next(self._numbers))
        try:
            if line is not None and asked.seat is line.seat:
                wish = self._wish(line)
            else:
                wish = self._parameters(max_tokens=1, temperature=0, logprobs=likeliest)
            wish.detokenize = False
            prompt = self._llm.renderer.render_cmpl([{"prompt_token_ids": list(asked.seat.ids)}])[0]
            asked.id = self._llm.add_request(name, prompt, wish)
        except ValueError as error:
            raise InputError(f"vLLM refuses this request: {str(error).splitlines()[0][:200]}") from error
        self._asked[name] = self._passes.asked[asked.id] = asked
        return asked

    def _wish(self, line: Line) -> Any:
        """How a choice is sampled, as vLLM says it. Temperature 0 is greedy there too, and log-probabilities are of before it."""
        from vllm.sampling_params import RequestOutputKind

        asked = line.choice.sampling
        return self._parameters(
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            top_p=max(asked.top_p, 1e-6),  # 0, the likeliest alone, is not allowed there
            top_k=asked.top_k,
            seed=asked.seed % (1 << 63),
            presence_penalty=asked.presence_penalty,
            frequency_penalty=asked.frequency_penalty,
            logit_bias=dict(asked.logit_bias) or None,
            stop_token_ids=[] if asked.ignore_end else sorted(self._ends),
            ignore_eos=True,  # the ends are those that the model's files name
            logprobs=asked.logprobs,
            output_kind=RequestOutputKind.DELTA,
        )

    def _finish(self, asked: Sequence[Asked]) -> None:
        """Steps until these are done; what else is at work goes on with them."""
        while not all(each.done or each.error is not None for each in asked):
            self._step()
        for each in asked:
            if each.error is not None:
                self._abort(asked)
                raise each.error

    def _step(self) -> None:
        if not self._asked:
            return
        self._passes.forget()
        try:
            outputs = self._llm.step()
        except Exception as error:
            self._failed(error)
            return
        self._weigh()
        for output in outputs:
            self._take(output)
        self._drop()

    def _failed(self, error: Exception) -> None:
        """A pass failed, and its requests with it; what fails before a pass is the engine's own fault."""
        inside = [part.asked for part in self._passes.parts]
        if not inside:
            raise error
        failure = error
        if not isinstance(error, ScopebaseError):
            log.error("a pass through the model failed", exc_info=error)
            failure = _failure(error, self.device)
        self._end(inside, failure)

    def _end(self, asked: Sequence[Asked], error: Exception) -> None:
        for each in asked:
            if each.line is not None:
                each.line.work.fail(error)
            elif isinstance(error, ScopebaseError):
                each.error = error
        self._abort(asked)
        self._drop()

    def _weigh(self) -> None:
        """What the pass told beside its tokens: rows that broke, and divergences. Before its tokens are taken."""
        parts = self._passes.parts
        broken = [] if self._passes.broken is None else self._passes.broken.tolist()
        for part, bad in zip(parts, broken, strict=False):
            if bad:
                self._end([part.asked], WorkFailed(_not_finite(part.asked)))
        for asked in [part.asked for part in parts]:
            if asked.error is not None:
                self._end([asked], asked.error)
            elif asked.line is not None and asked.shadow is not None and asked.logits is not None:
                if asked.shadow.logits is None:
                    self._end(
                        [asked], WorkFailed("the unsteered prompt was not read in time; try again, or with kl off")
                    )
                    continue
                asked.line.diverged(divergence(asked.logits[None], asked.shadow.logits[None])[0])
                asked.shadow = asked.logits = None

    def _take(self, output: Any) -> None:
        """The next tokens of one request."""
        asked = self._asked.get(output.request_id)
        if asked is None:  # it was ended by what the pass told
            return
        if output.finished:
            asked.done = True
            self._passes.asked.pop(self._asked.pop(output.request_id).id, None)
        line = asked.line
        if line is None or asked.seat is not line.seat:
            return
        one, likeliest = output.outputs[0], line.choice.sampling.logprobs
        for place, token in enumerate(one.token_ids):
            if line.finish is None and not line.work.over:
                known = None if likeliest is None else told(one.logprobs[place], token, likeliest)
                line.take(token, known, self._ends)
        if output.finished:
            self._desk.ended()
            if line.finish is None:
                line.work.fail(
                    WorkFailed(f"vLLM ended this text before it was complete ({one.finish_reason}); try again")
                )

    def _fail_all(self, error: ScopebaseError) -> None:
        self._desk.dismiss(error)
        self._end(list(self._asked.values()), error)


def _failure(error: Exception, device: torch.device) -> WorkFailed:
    words = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in words:
        return WorkFailed(
            f"{device} ran out of memory on this request; try fewer tokens, or again when there is less to do"
        )
    reason = words.splitlines()[0][:200] if words else ""
    return WorkFailed(f"vLLM failed on this request: {type(error).__name__}: {reason}")


def _not_finite(asked: Asked) -> str:
    n = 0 if asked.line is None else asked.line.n_generated
    cause = (
        "lower the strength of its steering"
        if asked.seat.program is not None
        else "load the model with --dtype float32"
    )
    return f"after {n:,} tokens the model's output is not finite; {cause}"


def told(chosen: Mapping[int, Any], token: int, likeliest: int) -> Told:
    """vLLM's log-probabilities of one step, as ours."""
    best = sorted((each.rank, id_, each.logprob) for id_, each in chosen.items() if each.rank <= likeliest)
    return Told(chosen[token].logprob, [(id_, logprob) for _, id_, logprob in best[:likeliest]])
