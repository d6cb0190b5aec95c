# docker build -t normjax . && docker run --gpus=all -v "$PWD/runs:/normjax/runs" normjax experiments.random_pretrain --flagfile=...
# The host needs NVIDIA's driver and container toolkit; the wheels of jax[cuda12] bring CUDA.
FROM python:3.11-slim
WORKDIR /normjax
COPY setup.cfg pyproject.toml README.md LICENSE constraints.txt ./
COPY normjax normjax
COPY experiments experiments
RUN pip install --no-cache-dir --constraint constraints.txt --editable '.[cuda12,tensorboard]'
ENTRYPOINT ["python", "-m"]
CMD ["experiments"]
