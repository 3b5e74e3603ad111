"""The two cases of the Qwen-Scope report (its Fig. 3) as sweeps: a language that leaks in, and a style that is wanted.

The report gives a feature's index and neither model, layer nor strength. Where the index fits, the layer at which that very feature tells
the texts apart best is taken; where it does not fit or does not tell them apart, the feature is found by contrast, as the report's 3.2
does, and the answer says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from api.services.features.contrast import contrast
from api.services.library import Library
from api.services.sweeps.propose import propose
from schema.errors import InputError
from schema.live import LiveModel
from schema.wire.contrast import ContrastItem, ContrastRequest, ProposeRequest
from schema.wire.effects import Effect, ScriptShare, Words
from schema.wire.steering import Mode, OpSpec, Unit, Where
from schema.wire.sweeps import Controls, SweepRequest

MOST_Q = 0.05
MOST_P = 0.05
LOOKED_AT = 1_000
"""Features of each SAE among which the report's own is looked for."""


@dataclass(frozen=True)
class Recipe:
    """What is swept, but for the feature."""

    title: str
    index: int
    """The report's feature."""
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    prompts: tuple[str, ...]
    mode: Mode
    unit: Unit
    where: Where
    strengths: tuple[float, ...]
    effect: Effect
    want: Literal["more", "less"]
    chat: bool


@dataclass(frozen=True)
class Found:
    """The feature that a recipe steers with, and how it was come by."""

    feature: str
    how: str


def find_feature_of(
    library: Library,
    live: LiveModel,
    recipe: Recipe,
    saes: Sequence[str],
    positive: Sequence[str],
    negative: Sequence[str],
) -> Found:
    """The report's feature where it tells the texts apart, else the one that tells them apart best.

    Raises:
        InputError: no feature does.
        ScopebaseError: see `contrast`.
    """
    sides = {"positive": list(positive), "negative": list(negative), "saes": list(saes)}
    if "qwen3" in live.name:
        answer = contrast(library, live, ContrastRequest.model_validate({**sides, "limit": LOOKED_AT}))
        most = MOST_P / len(answer.data)  # one feature that was named beforehand, at each of the layers
        own = [item for each in answer.data for item in each.data if item.index == recipe.index and _tells(item, most)]
        if own:
            best = max(own, key=lambda item: (item.effect_size or 0.0, item.rate_difference))
            rates = f"{best.rates[0]:.0%} of the positive texts against {best.rates[1]:.0%}"
            return Found(
                best.feature, f"the report's feature {recipe.index}, at the layer where it is clearest: {rates}"
            )
    proposed = propose(library, live, ProposeRequest.model_validate({**sides, "propose": 1, "most_q": MOST_Q}))
    if not proposed.data:
        raise InputError(f"no feature tells the positive texts from the negative ones: {proposed.reason}")
    first = proposed.data[0]
    return Found(
        first.feature,
        f"found by contrast, since the report's feature {recipe.index} is not here or does not tell these texts apart: "
        f"mean activation {first.means[0]:.3g} in the positive texts against {first.means[1]:.3g}",
    )


def sweep_of(
    recipe: Recipe, name: str, feature: str, prompts: Sequence[str], samples: int, max_tokens: int, seed: int
) -> SweepRequest:
    """The recipe's request; send it as it is, or change it first."""
    return SweepRequest(
        name=name,
        target=[
            OpSpec(
                feature=feature,
                vector=None,
                layer=None,
                mode=recipe.mode,
                strength=1.0,
                unit=recipe.unit,
                where=recipe.where,
            )
        ],
        when=None,
        strengths=list(recipe.strengths),
        prompts=list(prompts),
        chat=recipe.chat,
        samples=samples,
        max_tokens=max_tokens,
        temperature=1.0,
        top_p=1.0,
        seed=seed,
        effects=[recipe.effect],
        want=recipe.want,
        controls=Controls(random_features=4),
    )


def _tells(item: ContrastItem, most: float) -> bool:
    return item.mean_difference > 0 and item.p_value is not None and item.p_value <= most


RECIPES = {
    "language-mixing": Recipe(
        title="English prompts, Chinese in the answers: suppress the Chinese feature while generating",
        index=6159,
        positive=(
            "今天早上我去市场买了一些新鲜的蔬菜和水果。",
            "他说这个问题很简单，我们可以一步一步地解决。",
            "图书馆在学校的后面，每天晚上九点关门。",
            "请告诉我如何用三个步骤完成这项工作。",
            "孩子们在公园里放风筝，老人们在树下下棋。",
            "科学家发现了一种新的方法来储存能量。",
            "火车晚点了两个小时，乘客们都很着急。",
            "她打开窗户，看见外面下着大雪。",
            "这家饭店的菜又便宜又好吃，我们常常去。",
            "明年春天我打算去南方旅行。",
            "医生让他多休息，少喝咖啡。",
            "电脑坏了，我只好用手写这封信。",
            "弟弟喜欢踢足球，妹妹喜欢画画。",
            "请把椅子搬到会议室里去。",
            "他在银行工作了十五年。",
            "河上的桥正在修，车要从另一边走。",
        ),
        negative=(
            "This morning I went to the market and bought some fresh vegetables and fruit.",
            "He said the problem is simple and that we can solve it step by step.",
            "The library is behind the school and closes at nine every evening.",
            "Please tell me how to finish this work in three steps.",
            "Children fly kites in the park, and old men play chess under the trees.",
            "Scientists found a new way of storing energy.",
            "The train was two hours late, and the passengers were worried.",
            "She opened the window and saw heavy snow outside.",
            "The food in this restaurant is cheap and good, and we often go there.",
            "I plan to travel to the south next spring.",
            "The doctor told him to rest more and drink less coffee.",
            "The computer broke, so I had to write this letter by hand.",
            "My brother likes football and my sister likes painting.",
            "Please carry the chairs to the meeting room.",
            "He has worked at the bank for fifteen years.",
            "The bridge is being mended, and cars take another road.",
        ),
        prompts=(
            "Explain in English what the Chinese word 缘分 means.",
            "In English: what is the difference between 了 and 过?",
            "Summarize the story of the Monkey King in one paragraph.",
            "What do people eat at the Mid-Autumn Festival, and why?",
            "How would you introduce yourself to a host family in Beijing?",
            "Which idioms are used to praise a calligrapher? Answer in English.",
            "Describe the plot of Dream of the Red Chamber in three sentences.",
            "Explain the rules of Go to a beginner.",
            "What are the four great inventions of ancient China?",
            "Give three tips for learning to write Chinese characters.",
        ),
        mode="suppress",
        unit="absolute",
        where=Where.model_validate({"prompt": "none"}),
        strengths=(0.25, 0.5, 1.0),
        effect=ScriptShare(measure="script", script="Han"),
        want="less",
        chat=True,
    ),
    "classical-style": Recipe(
        title="A modern Chinese story goes on in classical Chinese: activate the classical-Chinese feature",
        index=36398,
        positive=(
            "昔者庄周梦为胡蝶，栩栩然胡蝶也，自喻适志与，不知周也。",
            "子曰：学而时习之，不亦说乎？有朋自远方来，不亦乐乎？",
            "晋太元中，武陵人捕鱼为业，缘溪行，忘路之远近。",
            "先帝创业未半而中道崩殂，今天下三分，益州疲弊。",
            "水陆草木之花，可爱者甚蕃，晋陶渊明独爱菊。",
            "臣密言：臣以险衅，夙遭闵凶，生孩六月，慈父见背。",
            "古之学者必有师，师者，所以传道受业解惑也。",
            "庆历四年春，滕子京谪守巴陵郡，越明年，政通人和。",
            "天将降大任于是人也，必先苦其心志，劳其筋骨。",
            "孟子见梁惠王。王曰：叟，不远千里而来，亦将有以利吾国乎？",
            "秦孝公据崤函之固，拥雍州之地，君臣固守以窥周室。",
            "环滁皆山也。其西南诸峰，林壑尤美。",
            "壬戌之秋，七月既望，苏子与客泛舟游于赤壁之下。",
            "余闻之也久，明道中，从先人还家，于舅家见之。",
            "楚人有涉江者，其剑自舟中坠于水，遽契其舟。",
            "宋人有耕者，田中有株，兔走触株，折颈而死。",
        ),
        negative=(
            "昨天晚上我梦见自己变成了一只蝴蝶，在花丛里飞来飞去。",
            "老师说，学过的东西要常常复习，朋友来了大家都很高兴。",
            "从前有一个打鱼的人，他划着船走了很远，不知道到了哪里。",
            "公司刚成立不久，老板就生病了，大家都很担心。",
            "公园里有很多好看的花，我最喜欢的是菊花。",
            "我从小身体不好，爸爸很早就去世了，是奶奶把我带大的。",
            "每个学生都需要一位好老师，老师会回答我们的问题。",
            "那一年春天，他被调到一个小城市工作，第二年情况就好多了。",
            "要做成大事的人，总要先吃很多苦。",
            "校长问他：你这么远跑来，是想给我们提什么建议吗？",
            "那个国家的位置很好，所以别的国家都不敢打它。",
            "这座城市四面都是山，西南边的风景最漂亮。",
            "秋天的一个晚上，我和几个朋友坐船到江上看月亮。",
            "这件事我听说很久了，去年回家的时候才亲眼看到。",
            "有个人坐船过河，把手机掉进了水里，怎么也找不到。",
            "农民在地里干活，看见一只兔子跑了过去。",
        ),
        prompts=(
            "从前有一个小村子，村子里住着一位老人。",
            "那天下着大雨，他一个人走在回家的路上。",
            "小明打开门，看见桌子上放着一封信。",
            "火车开动了，她看着窗外，心里很难过。",
            "山脚下有一座旧房子，很久没有人住了。",
            "妈妈对孩子说，今天晚上我们去看月亮。",
            "他在城里工作了十年，终于回到了家乡。",
            "夜里很安静，只听见河水的声音。",
            "商店关门以后，街上一个人也没有。",
            "春天来了，花园里的花都开了。",
        ),
        mode="add",
        unit="residual_norm",
        where=Where.model_validate({}),
        strengths=(0.05, 0.1, 0.2, 0.35),
        effect=Words(measure="words", words=["之", "乎", "矣", "焉", "哉", "兮", "曰", "吾", "汝", "耳"]),
        want="more",
        chat=False,
    ),
}  # fmt: skip
