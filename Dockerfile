FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PICTURE_DATA_DIR=/data

# Text in SVG images is drawn with these.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends fonts-dejavu-core \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 10001 --create-home picture \
    && install --directory --owner picture --group picture /data /data/beat /data/media
WORKDIR /app

COPY requirements.txt .
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt

COPY . .

USER picture
EXPOSE 8000
CMD ["python", "-m", "uvicorn", "picture.asgi:application", "--host", "0.0.0.0", "--port", "8000", \
     "--no-access-log", "--lifespan", "off", "--timeout-graceful-shutdown", "5", \
     "--ws-max-size", "1024", "--ws-per-message-deflate", "false"]
