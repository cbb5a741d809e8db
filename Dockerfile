# What the container schedulers run: docker build -t torchrec_mtl .
# For GPUs, not yet run on one: docker build -t torchrec_mtl:cuda --build-arg PLATFORM=cuda .
FROM python:3.11-slim-bookworm

ARG PLATFORM=cpu
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

# Packages first, as they change less often than the code; torch's CPU build is on PyTorch's own index.
COPY --chown=trainer:trainer requirements requirements
RUN python -m venv /home/trainer/venv \
    && if [ "$PLATFORM" = cpu ]; then index="--extra-index-url $TORCH_CPU_INDEX"; fi \
    && pip install -q --no-deps $index -c requirements/common.txt pip setuptools torch \
    && pip install -q --no-build-isolation -r requirements/$PLATFORM.txt

COPY --chown=trainer:trainer . .
RUN pip install -q --no-deps --no-build-isolation -e . \
    && pip check \
    && python -W ignore -m torchrec_mtl.ops.build
