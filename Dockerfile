# raynas for a Ray cluster: docs/cluster.md. For CPUs as it is; for NVIDIA GPUs with --build-arg TORCH=cu130.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY nas nas
COPY searchspaces searchspaces
COPY cluster cluster
COPY examples examples
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
# g++: DeepSpeed builds its CPU operator on each machine, for that machine's processor. wget: KubeRay's probes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/*
# Torch for CPUs or for one CUDA, whose libraries come with it: the index on which its builds are newer than PyPI's
ARG TORCH=cpu
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --extra-index-url "https://download.pytorch.org/whl/${TORCH}" /wheels/*.whl
# Not root, with a home for what is built and for Ray's token; KubeRay starts Ray from a login shell of this user
RUN useradd --create-home --uid 1000 ray
USER ray
WORKDIR /home/ray
