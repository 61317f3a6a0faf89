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
trap 'rm -rf --one-file-system "$work"' EXIT
mkdir -p dist "$work/image"
# The two forms of apt's sources do not mix in one stream.
shopt -s nullglob
sources=(/etc/apt/sources.list.d/*.sources)
[ ${#sources[@]} -gt 0 ] || sources=(/etc/apt/sources.list.d/*.list /etc/apt/sources.list)
. /etc/os-release
# A tar, so that mmdebstrap mounts and removes what it needs by itself; made
# with a fixed time, it is the same as long as the packages are.
for s in "${sources[@]}"; do cat "$s"; printf '\n\n'; done |
	SOURCE_DATE_EPOCH=0 mmdebstrap --quiet --mode=root --variant=essential --include=btrfs-progs,ca-certificates --format=tar \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--customize-hook="upload $binary /usr/bin/drover" --customize-hook='chmod 0755 "$1/usr/bin/drover"' \
		--customize-hook='rm -rf "$1"/var/cache/apt "$1"/var/lib/apt' \
		"$VERSION_CODENAME" "$work/image/layer.tar" -
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
