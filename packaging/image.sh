#!/usr/bin/env bash
# Builds an OCI image of the agent without a registry: image.sh BINARY VERSION ARCH
# The base is made from the machine's own Debian archive. The result is
# dist/drover-image.tar, for docker load or podman load.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$1 version=$2 arch=$3
[ "$(id -u)" = 0 ] || { echo "making the image's file system needs root" >&2; exit 1; }
if ! command -v mmdebstrap >/dev/null; then
	echo "installing the Debian package mmdebstrap"
	apt-get update -q && apt-get install -y -q --no-install-recommends mmdebstrap
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p dist "$work/image"
sources=(/etc/apt/sources.list.d/*.sources /etc/apt/sources.list)
mmdebstrap --quiet --mode=root --variant=minbase --architectures="$arch" \
	--include=btrfs-progs,ca-certificates --dpkgopt='path-exclude=/usr/share/{doc,man,locale,info}/*' \
	"" "$work/root" < <(cat "${sources[@]}" 2>/dev/null || true)
install -m 0755 "$binary" "$work/root/usr/bin/drover"
rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/* "$work"/root/dev/*
# Reproducible as far as the packages are: sorted, without names and times.
tar --sort=name --mtime=@0 --numeric-owner -C "$work/root" -cf "$work/image/layer.tar" .
diff_id=$(sha256sum "$work/image/layer.tar" | cut -d' ' -f1)
cat >"$work/config.json" <<JSON
{"architecture":"$arch","os":"linux","created":"1970-01-01T00:00:00Z",
"config":{"Entrypoint":["/usr/bin/drover"],"Cmd":["units"],"Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
"Labels":{"org.opencontainers.image.title":"drover","org.opencontainers.image.version":"$version","org.opencontainers.image.licenses":"Apache-2.0"}},
"rootfs":{"type":"layers","diff_ids":["sha256:$diff_id"]}}
JSON
config=$(sha256sum "$work/config.json" | cut -d' ' -f1)
# The layout that docker load and podman load both read.
mv "$work/config.json" "$work/image/$config.json"
printf '[{"Config":"%s.json","RepoTags":["drover:%s"],"Layers":["layer.tar"]}]' "$config" "${version//[^A-Za-z0-9_.-]/-}" >"$work/image/manifest.json"
tar --sort=name --mtime=@0 --numeric-owner --owner=0 --group=0 -C "$work/image" -cf dist/drover-image.tar .
echo "dist/drover-image.tar holds drover:$version ($(du -h dist/drover-image.tar | cut -f1)); docker load <dist/drover-image.tar"
