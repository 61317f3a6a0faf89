#!/usr/bin/env bash
# Builds the Debian package: deb.sh BINARY NFPM VERSION ARCH [DIRECTORY]
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$1 nfpm=$2 version=${3#v} arch=$4 out=${5:-dist}
mkdir -p "$out"; rm -rf dist/root
packaging/install.sh "$binary" "$PWD/dist/root" /usr
VERSION=$version ARCH=$arch "$nfpm" package --config packaging/nfpm.yaml --packager deb --target "$out/"
rm -rf dist/root
