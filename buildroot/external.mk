include $(sort $(wildcard $(BR2_EXTERNAL_PLAINTAP_PATH)/package/*/*.mk))
