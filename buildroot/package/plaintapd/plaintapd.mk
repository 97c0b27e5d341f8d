################################################################################
#
# plaintapd
#
################################################################################

PLAINTAPD_VERSION = 0.1.0
# The archive lies in this tree: buildroot/build.sh of plaintap's sources made both.
PLAINTAPD_SITE = file://$(BR2_EXTERNAL_PLAINTAP_PATH)/dl
PLAINTAPD_SOURCE = plaintapd-$(PLAINTAPD_VERSION).tar.gz
PLAINTAPD_LICENSE = Apache-2.0 or MIT
PLAINTAPD_LICENSE_FILES = LICENSE-APACHE LICENSE-MIT
PLAINTAPD_SUBDIR = agent
PLAINTAPD_CARGO_BUILD_OPTS = --bin plaintapd

define PLAINTAPD_INSTALL_CONFIG
	$(INSTALL) -D -m 0600 $(PLAINTAPD_PKGDIR)/plaintapd.conf \
		$(TARGET_DIR)/etc/plaintapd.conf
endef
PLAINTAPD_POST_INSTALL_TARGET_HOOKS += PLAINTAPD_INSTALL_CONFIG

# What talks to clients runs as this user, without any privilege.
define PLAINTAPD_USERS
	plaintapd -1 plaintapd -1 * - - - TLS capture, its side to clients
endef

ifeq ($(BR2_PACKAGE_PLAINTAPD_START_AT_BOOT),y)
define PLAINTAPD_INSTALL_INIT_SYSV
	$(INSTALL) -D -m 0755 $(PLAINTAPD_PKGDIR)/S90plaintapd \
		$(TARGET_DIR)/etc/init.d/S90plaintapd
endef

define PLAINTAPD_INSTALL_INIT_SYSTEMD
	$(INSTALL) -D -m 0644 $(PLAINTAPD_PKGDIR)/plaintapd.service \
		$(TARGET_DIR)/usr/lib/systemd/system/plaintapd.service
endef
endif

define PLAINTAPD_LINUX_CONFIG_FIXUPS
	$(call KCONFIG_ENABLE_OPT,CONFIG_BPF_SYSCALL)
	$(call KCONFIG_ENABLE_OPT,CONFIG_BPF_JIT)
	$(call KCONFIG_ENABLE_OPT,CONFIG_PERF_EVENTS)
	$(call KCONFIG_ENABLE_OPT,CONFIG_FTRACE)
	$(call KCONFIG_ENABLE_OPT,CONFIG_KPROBES)
	$(call KCONFIG_ENABLE_OPT,CONFIG_KPROBE_EVENTS)
	$(call KCONFIG_ENABLE_OPT,CONFIG_UPROBE_EVENTS)
	$(call KCONFIG_ENABLE_OPT,CONFIG_BPF_EVENTS)
	$(call KCONFIG_ENABLE_OPT,CONFIG_INET_DIAG)
endef

$(eval $(cargo-package))
