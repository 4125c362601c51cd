# One image for the whole Flow, or for any of its executors:
#   docker build -t finetuner-flow .                             (CPU)
#   docker build -t finetuner-flow:gpu --build-arg DEVICE=gpu .  (GPU)
#   docker build -t finetuner-flow:ray --build-arg EXTRAS=ray .  (with more extras: EXTRAS=ray,lora)
#   docker run -v finetuner:/data finetuner-flow finetuner token create laptop --scope admin   (once)
#   docker run -p 51000:51000 -p 51001:51001 -v finetuner:/data finetuner-flow
#   docker run -v finetuner:/data finetuner-flow jina executor --native --uses executors/encoder/config.yml
FROM python:3.11-slim
ARG DEVICE=cpu
ARG EXTRAS=
ENV FINETUNER_WORKSPACE=/data JINA_OPTOUT_TELEMETRY=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home finetuner && mkdir /data && chown finetuner /data
WORKDIR /srv/finetuner
COPY . .
# The index of CPU builds keeps gigabytes of CUDA out of the CPU image; the GPU image has another
# onnxruntime than the one that is pinned.
RUN if [ "$DEVICE" = cpu ]; then \
      pip install --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu; \
    else sed -i '/^onnxruntime==/d' requirements.txt; fi \
    && pip install -c requirements.txt ".[$DEVICE${EXTRAS:+,$EXTRAS}]" && pip check
USER finetuner
VOLUME /data
EXPOSE 51000 51001
ENTRYPOINT ["tini", "--"]
CMD ["finetuner", "serve", "--host", "0.0.0.0"]
