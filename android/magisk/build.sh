#!/usr/bin/env bash
# Makes the module for Magisk, KernelSU and APatch, from dist/plaintapd-aarch64: OUTDIR/plaintap-magisk.zip.
#
#   bash android/magisk/build.sh OUTDIR          a module that is updated by hand
#   bash android/magisk/build.sh OUTDIR URL      one that the app updates: URL is where OUTDIR's files will be served; the
#                                                app is told by OUTDIR/plaintap-magisk.json there
#
# The same sources and the same plaintapd give the same bytes.
set -euo pipefail
case ${1:-} in
  -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" && exit 0 ;;
esac
from=$PWD
# shellcheck source=ci/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../ci/lib.sh"
script_name=android/magisk/build.sh

[[ ${1:-} && $# -le 2 ]] || die "OUTDIR, and perhaps a URL: see --help" 2
out=$1 url=${2:-}
[[ $out == /* ]] || out=$from/$out
[[ -z $url || $url =~ ^https://[^[:space:]\"\\]+$ ]] || die "'$url' is no https:// URL" 2
url=${url%/}
agent=${PLAINTAP_MAGISK_AGENT:-dist/plaintapd-aarch64}
[[ -x $agent ]] || die "$agent is missing: run bash ci/build-device.sh first"
version=$(workspace_version)
# 1.2.3 is 10203: what the apps compare.
IFS=. read -r major minor patch <<<"${version%%[-+]*}"
code=$((major * 10000 + minor * 100 + patch))

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
module=$work/module
mkdir "$module"
cp -R android/magisk/{META-INF,module.prop,plaintapd.conf,*.sh} "$module/"
rm "$module/build.sh"
cp "$agent" "$module/plaintapd"
cp LICENSE-APACHE LICENSE-MIT "$module/"
sed -i -e "s/@VERSION@/v$version/" -e "s/@CODE@/$code/" "$module/module.prop"
[[ -z $url ]] || printf 'updateJson=%s/plaintap-magisk.json\n' "$url" >>"$module/module.prop"

mkdir -p "$out"
# Sorted, with one date for all and the modes that they have on the device.
/usr/bin/python3 -B - "$module" "$out/plaintap-magisk.zip.new" <<'PYTHON'
import pathlib, sys, zipfile
folder = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(sys.argv[2], "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        entry = zipfile.ZipInfo(path.relative_to(folder).as_posix(), (1980, 1, 1, 0, 0, 0))
        entry.create_system = 3
        entry.compress_type = zipfile.ZIP_DEFLATED
        runs = path.name in ("plaintapd", "update-binary") or path.suffix == ".sh"
        entry.external_attr = (0o100755 if runs else 0o100644) << 16
        archive.writestr(entry, path.read_bytes())
PYTHON
mv "$out/plaintap-magisk.zip.new" "$out/plaintap-magisk.zip"
if [[ $url ]]; then
  printf '{\n  "version": "v%s",\n  "versionCode": %d,\n  "zipUrl": "%s/plaintap-magisk.zip",\n  "changelog": "%s/CHANGELOG.md"\n}\n' \
    "$version" "$code" "$url" "$url" >"$out/plaintap-magisk.json"
fi
stat -c '%n: %s bytes' "$out/plaintap-magisk.zip"
