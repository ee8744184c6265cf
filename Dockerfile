# Both stages are of the same Debian release, so that the binary finds the C library that it was linked with.
FROM rust:1-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin larder

FROM debian:bookworm-slim
COPY --from=build /src/target/release/larder /usr/local/bin/larder
USER 65532:65532
# Inside a container every interface: what is reachable from outside is decided where the port is published.
ENV LARDER_LISTEN=0.0.0.0:6380
EXPOSE 6380
HEALTHCHECK --interval=5s --timeout=3s --start-period=2s --retries=3 CMD ["larder", "ping"]
ENTRYPOINT ["larder"]
