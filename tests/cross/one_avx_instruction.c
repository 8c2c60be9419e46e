/* What a CPU without AVX must refuse. */
int main(void) {
    __asm__ volatile("vxorps %%ymm0, %%ymm0, %%ymm0\n\tvzeroupper" : : : "xmm0");
    return 0;
}
