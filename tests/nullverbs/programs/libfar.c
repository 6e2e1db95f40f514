/* cc: -Wl,--version-script=programs/far.map */
/* Behind libnear.so, with a version. */
const char *place_of_far(void);

const char *place_of_far(void)
{
    return "far";
}

__asm__(".symver place_of_far, place@@FAR_1");
