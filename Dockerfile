# docker build -t lora-studio .
# docker run --gpus all -v "$PWD/runs:/app/runs" lora-studio demo
# docker run --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/data" -w /data lora-studio start my_images
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

WORKDIR /app
# torch before the code, so that a change of the code does not download it again.
ARG TORCH=torch==2.13.0
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt ${TORCH}

COPY pyproject.toml setup.py README.md LICENSE ./
COPY lora_studio ./lora_studio
COPY recipes ./recipes
COPY sample_images ./sample_images
# Editable, so that recipes/ and sample_images/ are found beside the package as in a clone.
RUN pip install --no-cache-dir -c constraints.txt -e .

RUN useradd --create-home --uid 10001 studio \
    && mkdir -p runs cache \
    && chown studio:studio runs cache \
    && chmod 1777 runs cache
# Whoever it runs as, so that what it writes into a mounted folder is theirs.
ENV HOME=/tmp LORA_STUDIO_CACHE=/app/cache HF_HOME=/app/cache/hub
USER studio
VOLUME ["/app/runs"]

ENTRYPOINT ["lora-studio"]
CMD ["--help"]
