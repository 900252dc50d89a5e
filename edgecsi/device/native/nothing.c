/* A kernel that does nothing, in TVM's calling convention: what one call over RPC costs to time. */
__attribute__((visibility("default"))) int __tvm_ffi_nothing(void *self, const void *arguments, int count,
                                                             void *result) {
    (void)self, (void)arguments, (void)count, (void)result;
    return 0;
}
