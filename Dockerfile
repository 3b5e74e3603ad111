# The API, the command line and the indexer on a CPU. docker-compose.yml runs it.
FROM python:3.11-slim
WORKDIR /app
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch --index-url https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE ./
COPY schema schema
COPY indexer indexer
COPY steering steering
COPY api api
COPY migrations migrations
COPY scopebase scopebase
RUN pip install --no-cache-dir -c constraints.txt '.[all]'
RUN useradd --create-home scopebase && install -d -o scopebase /data
USER scopebase
WORKDIR /data
ENV SCOPEBASE_HOME=/data
EXPOSE 8000
CMD ["scopebase", "--help"]
