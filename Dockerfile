# fedjax-sim for machines with NVIDIA GPUs:
#
#     docker build --tag fedjax-sim .
#     docker run --rm --gpus all --volume "$PWD/runs:/experiments/runs" fedjax-sim train --rounds 100
#
# The host needs a driver for CUDA 13 and the NVIDIA container toolkit; the CUDA libraries come with
# jax. No network is needed once it is built. Files in runs/ belong to user 1000: where that is not
# you, add --user "$(id -u):$(id -g)". Without GPUs: --build-arg EXTRAS=trackers.
FROM python:3.12-slim

ARG EXTRAS=cuda,trackers

COPY . /source
RUN pip install --no-cache-dir "/source[${EXTRAS}]" && rm -r /source

RUN useradd --uid 1000 --create-home researcher && mkdir /experiments && mkdir --mode 777 /experiments/runs
USER 1000
WORKDIR /experiments
# Anyone may run it: what is remembered between calls, such as compiled programs, lies here.
ENV XDG_CACHE_HOME=/tmp/cache MPLCONFIGDIR=/tmp/cache/matplotlib PYTHONUNBUFFERED=1
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

ENTRYPOINT ["fedjax-sim"]
CMD ["--help"]
