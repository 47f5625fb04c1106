# syntax=docker/dockerfile:1
# The sidecar's image: one binary, no shell, not root.

FROM rust:1-bookworm AS build
WORKDIR /src
COPY . .
# What cargo downloads and compiles stays in the builder's caches, so that a change of ours compiles only ours.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin afterimage && cp target/release/afterimage /afterimage

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /afterimage /usr/local/bin/afterimage
# Relative paths of the configuration (run/ext_proc.sock) are relative to this directory.
WORKDIR /afterimage
# The number, so that Kubernetes can see that it is not root.
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/afterimage"]
CMD ["serve", "--config", "/etc/afterimage/afterimage.yaml"]
