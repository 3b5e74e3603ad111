# Everything that docker-compose.yml runs but PostgreSQL and the object store: the API, the command line, the indexer.
#   docker build .                    for machines without a GPU (the last target is the default)
#   docker build --target cuda .      for NVIDIA GPUs
# Digests are of the image's index over all platforms, so they name one image for each.
FROM python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d AS python
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

# What both targets install before the code, so that a change of code changes one small layer.
FROM python AS requirements
RUN python -m venv /opt/scopebase
WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN mkdir api indexer migrations schema scopebase steering && touch scopebase/__init__.py

FROM requirements AS cpu-requirements
RUN /opt/scopebase/bin/pip install -c constraints.txt torch --index-url https://download.pytorch.org/whl/cpu
RUN /opt/scopebase/bin/pip install -c constraints.txt '.[all]'

# The wheels bring CUDA along; the host needs its driver and the NVIDIA Container Toolkit.
FROM requirements AS cuda-requirements
RUN /opt/scopebase/bin/pip install -c constraints.txt torch --index-url https://download.pytorch.org/whl/cu130
RUN /opt/scopebase/bin/pip install -c constraints.txt '.[all]'

FROM python AS code
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY schema schema
COPY indexer indexer
COPY steering steering
COPY api api
COPY migrations migrations
COPY scopebase scopebase
RUN pip wheel --no-deps --wheel-dir /wheels .

# /data and /models belong to the user that the container runs as; a fresh volume takes that over.
FROM python AS runtime
RUN useradd --uid 10001 --create-home scopebase && install -d -o scopebase -g scopebase /data /models
ENV PATH=/opt/scopebase/bin:$PATH PYTHONUNBUFFERED=1 SCOPEBASE_HOME=/data HF_HOME=/models
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v1/health', timeout=4)"]
CMD ["scopebase", "--help"]

FROM runtime AS cuda
COPY --from=cuda-requirements /opt/scopebase /opt/scopebase
RUN --mount=type=bind,from=code,source=/wheels,target=/wheels pip install --no-deps --force-reinstall /wheels/*.whl
USER scopebase

FROM runtime AS cpu
COPY --from=cpu-requirements /opt/scopebase /opt/scopebase
RUN --mount=type=bind,from=code,source=/wheels,target=/wheels pip install --no-deps --force-reinstall /wheels/*.whl
USER scopebase
