# rlkit with CUDA and vLLM: docker build -t rlkit . && docker run --gpus all --ipc host -v "$PWD:/work" rlkit doctor
# torch and vLLM bring the CUDA libraries that they were built with; the base image adds the compiler for what DeepSpeed
# and vLLM compile when they run.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
    && apt-get install -y --no-install-recommends software-properties-common g++ git bubblewrap \
    && add-apt-repository -y ppa:deadsnakes/ppa \
    && apt-get install -y --no-install-recommends python3.11 python3.11-dev python3.11-venv \
    && rm -rf /var/lib/apt/lists/*

RUN python3.11 -m venv /opt/rlkit
ENV PATH=/opt/rlkit/bin:$PATH
COPY requirements/gpu.txt /build/
RUN pip install --no-cache-dir -r /build/gpu.txt

COPY . /build/rlkit
RUN pip install --no-cache-dir --no-deps --no-build-isolation /build/rlkit && rm -rf /build

ENV OMP_NUM_THREADS=1 HF_HOME=/cache/huggingface
WORKDIR /work
ENTRYPOINT ["rlkit"]
CMD ["--help"]
