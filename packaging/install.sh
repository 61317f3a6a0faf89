#!/usr/bin/env bash
# Installs the binary, units and completions, or removes them.
#   install.sh BINARY DESTDIR PREFIX
#   install.sh --remove DESTDIR PREFIX
set -euo pipefail
what=$1 dest=${2%/} prefix=${3%/}
here=$(cd "$(dirname "$0")" && pwd)
bin=$dest$prefix/bin/drover
units=$dest/usr/lib/systemd/system
bash_dir=$dest$prefix/share/bash-completion/completions
zsh_dir=$dest$prefix/share/zsh/vendor-completions
fish_dir=$dest$prefix/share/fish/vendor_completions.d
sysusers=$dest/usr/lib/sysusers.d/drover.conf
tmpfiles=$dest/usr/lib/tmpfiles.d/drover.conf

# Only a real installation on a machine with systemd touches what runs.
live=; if [ -z "$dest" ] && [ -d /run/systemd/system ]; then live=1; fi

if [ "$what" = --remove ]; then
	[ -z "$live" ] || systemctl disable --now drover-agent.service drover-state.service drover-hub.service || true
	rm -f "$bin" "$units"/drover-{agent,state,hub}.service "$sysusers" "$tmpfiles" \
		"$bash_dir/drover" "$zsh_dir/_drover" "$fish_dir/drover.fish"
	[ -z "$live" ] || systemctl daemon-reload
	echo "Drover is removed; its data in /var/lib/drover stays"
	exit 0
fi

install -d "$(dirname "$bin")" "$units" "$bash_dir" "$zsh_dir" "$fish_dir" "$(dirname "$sysusers")" "$(dirname "$tmpfiles")"
# Beside and renamed, so that a running agent keeps the file it was started from.
install -m 0755 "$what" "$bin.new"
mv -f "$bin.new" "$bin"
for unit in "$here"/systemd/*.service; do
	sed "s|/usr/bin/drover|$prefix/bin/drover|" "$unit" >"$units/$(basename "$unit")"
	chmod 0644 "$units/$(basename "$unit")"
done
install -m 0644 "$here/systemd/drover.sysusers" "$sysusers"
install -m 0644 "$here/systemd/drover.tmpfiles" "$tmpfiles"
"$bin" completion bash >"$bash_dir/drover"
"$bin" completion zsh >"$zsh_dir/_drover"
"$bin" completion fish >"$fish_dir/drover.fish"
if [ -n "$live" ]; then
	systemd-sysusers "$sysusers"
	systemd-tmpfiles --create "$tmpfiles"
	systemctl daemon-reload
elif [ -z "$dest" ] && [ "$(id -u)" = 0 ]; then
	getent group drover >/dev/null || groupadd --system drover
fi
echo "drover is $prefix/bin/drover; drover init makes a cluster, drover join enters one"
