# The image of `coverslip serve`, `work` and `migrate`; docker-compose.yml runs them.
# Debian 12 in both stages, so that the program meets the libraries it was built against.

FROM golang:1.26-bookworm AS build
WORKDIR /src
# First what changes seldom: packages, ONNX Runtime and OpenSlide, modules.
COPY setup.sh apt-packages.txt go.mod go.sum ./
COPY internal/tools/ internal/tools/
RUN ./setup.sh && go mod download
COPY . .
RUN make build

FROM debian:bookworm-slim
COPY apt-packages.txt /tmp/
RUN apt-get update \
 && apt-get install -y --no-install-recommends $(awk '$1 == "image" {print $2}' /tmp/apt-packages.txt) \
 && rm -rf /var/lib/apt/lists/* /tmp/apt-packages.txt \
 && useradd --uid 10001 --create-home coverslip
COPY --from=build /src/bin/coverslip /opt/coverslip/bin/
# The program looks for ONNX Runtime and OpenSlide in ../lib of the folder it lies in.
COPY --from=build /src/lib/ /opt/coverslip/lib/
ENV PATH=/opt/coverslip/bin:$PATH
USER coverslip
WORKDIR /home/coverslip
EXPOSE 8080
ENTRYPOINT ["coverslip"]
CMD ["--help"]
