/* The same guest, compiled as C++17. */
#include "kit.c"
