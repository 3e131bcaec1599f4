#!/bin/sh
# The package's own mpirun, wherever the package lies. It takes mpirun's options.
set -eu
self=$(readlink -f "$0")
root=${self%/bin/mpirun}
export OPAL_PREFIX="$root/openmpi" OPAL_SYSCONFDIR="$root/openmpi/etc"
# These were built to look in absolute folders; plug-ins of another version may lie there.
export PMIX_PREFIX="$root/openmpi" PMIX_LIBDIR="$root/openmpi/lib" \
       PMIX_PKGLIBDIR="$root/openmpi/lib/pmix" PMIX_DATADIR="$root/openmpi/share" \
       PMIX_PKGDATADIR="$root/openmpi/share/pmix" PMIX_SYSCONFDIR="$root/openmpi/etc" \
       HWLOC_PLUGINS_PATH="$root/openmpi/lib/hwloc"
# Open MPI refuses to start without ssh, even on one machine, unless told that there is no other.
if [ -z "${OMPI_MCA_plm:-}${OMPI_MCA_plm_rsh_agent:-}" ] && ! command -v ssh >/dev/null 2>&1; then
  export OMPI_MCA_plm=isolated
fi
exec "$OPAL_PREFIX/bin/orterun" "$@"
