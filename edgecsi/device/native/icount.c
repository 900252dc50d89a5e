/* A QEMU plugin that counts the instructions a program executes and prints the total when it ends.
 *
 * QEMU installs no header for plugins on most systems, so the few functions used are declared here. Only functions
 * that every plugin API version has are used; the version to declare is given by -DPLUGIN_API. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
enum { NO_REGISTERS = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, void (*)(unsigned, void *), int, void *);
void qemu_plugin_register_atexit_cb(plugin_id, void (*)(plugin_id, void *), void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

EXPORT int qemu_plugin_version = PLUGIN_API;

static uint64_t executed;

static void on_execution(unsigned cpu, void *instructions) {
    (void)cpu;
    executed += (uintptr_t)instructions;
}

/* A translation block runs as a whole, so counting blocks times their lengths counts instructions. */
static void on_translation(plugin_id id, struct qemu_plugin_tb *block) {
    (void)id;
    void *instructions = (void *)(uintptr_t)qemu_plugin_tb_n_insns(block);
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_execution, NO_REGISTERS, instructions);
}

static void on_exit(plugin_id id, void *nothing) {
    (void)id, (void)nothing;
    fprintf(stderr, "instructions %llu\n", (unsigned long long)executed);
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_atexit_cb(id, on_exit, NULL);
    return 0;
}
