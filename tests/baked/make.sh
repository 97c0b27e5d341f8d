#!/usr/bin/env bash
# Has make read a Buildroot package under stubs of the infrastructure, and shows what came of it.
#
#   bash tests/baked/make.sh TREE CONFIG...      CONFIG as BR2_PACKAGE_PLAINTAPD=y
#
# The stub of cargo-package prints the variables and commands that the real one would use.
set -euo pipefail
tree=$(realpath "$1")
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/Makefile" <<'END'
pkgdir = $(dir $(lastword $(MAKEFILE_LIST)))
INSTALL = install
KCONFIG_ENABLE_OPT = kernel $(1)
show = $(foreach line,$(1),$(info $(line) = $($(line))))
define stub
PLAINTAPD_PKGDIR := $(BR2_EXTERNAL_PLAINTAP_PATH)/package/plaintapd
$(call show,PLAINTAPD_VERSION PLAINTAPD_SITE PLAINTAPD_SOURCE PLAINTAPD_LICENSE PLAINTAPD_SUBDIR PLAINTAPD_USERS)
$(call show,PLAINTAPD_LINUX_CONFIG_FIXUPS)
endef
cargo-package = $(stub)
TARGET_DIR = $(OUT)
# A service that is not chosen is none; all else must be defined.
PLAINTAPD_INSTALL_INIT_SYSV =
PLAINTAPD_INSTALL_INIT_SYSTEMD =
include $(BR2_EXTERNAL_PLAINTAP_PATH)/external.mk
install:
	$(foreach hook,$(PLAINTAPD_POST_INSTALL_TARGET_HOOKS),$($(hook)))
	$(PLAINTAPD_INSTALL_INIT_SYSV)
	$(PLAINTAPD_INSTALL_INIT_SYSTEMD)
END
mkdir "$work/target"
make --no-print-directory -s --warn-undefined-variables -f "$work/Makefile" BR2_EXTERNAL_PLAINTAP_PATH="$tree" \
  BR2_PACKAGE_PLAINTAPD_START_AT_BOOT= "$@" OUT="$work/target" install 2>&1
(cd "$work/target" && find . -type f -printf 'installs %p %m\n' | LC_ALL=C sort)
