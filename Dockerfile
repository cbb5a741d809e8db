# What the container schedulers run, with the newest releases that go together (docs/compatibility.md). Not built by us yet:
#   docker build -t torchrec_mtl .
#   docker build -t torchrec_mtl:cuda --build-arg PLATFORM=cuda .
FROM python:3.13-slim-bookworm

ARG PLATFORM=cpu
ARG TORCH=2.14.1
ARG TORCHREC=1.9.2
ARG FBGEMM=1.9.0
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

# The compiler is for the attention kernel, and for Triton's at run time.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libc6-dev \
    && rm -rf /var/lib/apt/lists/*

# Not root: what a job writes to a shared folder is this user's, or the one whom the scheduler names.
RUN useradd --create-home --uid 1000 trainer && install -d -o trainer -g trainer /job
USER trainer
WORKDIR /job
ENV PATH=/home/trainer/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# Packages first, as they change less often than the code: all others are pinned as they are for a clone.
COPY --chown=trainer:trainer requirements requirements
RUN python -m venv /home/trainer/venv \
    && sed -E '/^torch(rec)?==/d' requirements/common.txt > others.txt \
    && if [ "$PLATFORM" = cpu ]; then \
        index="--extra-index-url $TORCH_CPU_INDEX"; \
        fbgemm="fbgemm-gpu-cpu==$FBGEMM ./requirements/shim/fbgemm-gpu"; \
    else \
        fbgemm="fbgemm-gpu==$FBGEMM"; \
    fi \
    && pip install -q --no-deps $index -c others.txt pip setuptools "torch==$TORCH" \
    && pip install -q --no-build-isolation -r others.txt "torch==$TORCH" "torchrec==$TORCHREC" $fbgemm

COPY --chown=trainer:trainer . .
RUN pip install -q --no-deps --no-build-isolation -e . \
    && pip check \
    && python -W ignore -m torchrec_mtl.ops.build
