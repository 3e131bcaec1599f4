# Runs while a package is made: puts the libraries that PROGRAMS need into FOLDER, and Open MPI beside
# them, so that they find each other wherever the package lies.
#
#   PROGRAMS   files of the package, from its root
#   FOLDER     where their libraries go, from its root
#   EXCEPT_OF  a program whose libraries are there already, or nothing
#   OMPI_*     prefix, bindir, pkglibdir and pkgdatadir of Open MPI, or nothing
#   PATCHELF, STRIP, DPKG_QUERY (or nothing)
#
# Each file gets a RUNPATH of its own: a library does not inherit that of the program.
set(root "$ENV{DESTDIR}${CMAKE_INSTALL_PREFIX}")

# The C library, the driver and CUDA 13 are those of the machine.
set(stays "^(ld-linux|linux-vdso|lib(c|m|dl|rt|pthread|resolv|util|anl|nsl)\\.so\
|lib(cuda|cudart|cublas|cublasLt|nccl|nvrtc|nvJitLink|nvidia-.*)\\.so)")

function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()

# libraries(RESULT EXECUTABLES|MODULES file ...): all that they need, but for what stays. One that is
# missing ends the packaging.
function(libraries result)
  file(GET_RUNTIME_DEPENDENCIES ${ARGN} PRE_EXCLUDE_REGEXES ${stays}
       RESOLVED_DEPENDENCIES_VAR found)
  set(${result} ${found} PARENT_SCOPE)
endfunction()

# Copies a file, links followed, to TO (from the root), stripped and looking for libraries in lib/.
function(relocate from to)
  get_filename_component(folder "${root}/${to}" DIRECTORY)
  file(MAKE_DIRECTORY "${folder}")
  get_filename_component(real "${from}" REALPATH)
  file(COPY_FILE "${real}" "${root}/${to}")
  run(${STRIP} --strip-unneeded "${root}/${to}")
  file(RELATIVE_PATH to_libraries "${folder}" "${root}/${FOLDER}")
  if(to_libraries STREQUAL "")
    run(${PATCHELF} --set-rpath "$ORIGIN" "${root}/${to}")
  else()
    run(${PATCHELF} --set-rpath "$ORIGIN/${to_libraries}" "${root}/${to}")
  endif()
endfunction()

list(TRANSFORM PROGRAMS PREPEND "${root}/")
libraries(needed EXECUTABLES ${PROGRAMS})
if(EXCEPT_OF)
  libraries(there EXECUTABLES ${EXCEPT_OF})
  list(REMOVE_ITEM needed ${there})
endif()

if(OMPI_prefix)
  # What mpirun and its ranks need on hosts joined by TCP and shared memory. Nothing for InfiniBand:
  # large messages go over NCCL. A plug-in that this Open MPI does not have is built into it.
  set(plugins
    allocator_basic allocator_bucket bml_r2 btl_self btl_tcp btl_vader coll_basic coll_inter
    coll_libnbc coll_self coll_sync coll_tuned errmgr_default_app errmgr_default_hnp
    errmgr_default_orted errmgr_default_tool ess_env ess_hnp ess_pmi ess_singleton ess_slurm
    ess_tool filem_raw grpcomm_direct iof_hnp iof_orted iof_tool mpool_hugepage odls_default
    oob_tcp op_avx osc_pt2pt osc_rdma osc_sm patcher_overwrite plm_isolated plm_rsh plm_slurm
    pmix_ext3x pmix_isolated pml_ob1 pstat_linux ras_slurm rcache_grdma reachable_weighted regx_fwd
    regx_naive regx_reverse rmaps_ppr rmaps_rank_file rmaps_resilient rmaps_round_robin rmaps_seq
    rml_oob routed_binomial routed_direct routed_radix rtc_hwloc schizo_ompi schizo_orte
    schizo_slurm shmem_mmap shmem_posix shmem_sysv state_app state_hnp state_novm state_orted
    state_tool topo_basic)
  # At the same paths below openmpi/ as below Open MPI's own prefix: OPAL_PREFIX is nearly all it
  # has to be told.
  foreach(part pkglibdir pkgdatadir bindir)
    file(RELATIVE_PATH place "${OMPI_prefix}" "${OMPI_${part}}")
    set(${part} "openmpi/${place}")
  endforeach()
  set(modules)
  foreach(plugin ${plugins})
    set(file "${OMPI_pkglibdir}/mca_${plugin}.so")
    if(EXISTS "${file}")
      list(APPEND modules "${file}")
      relocate("${file}" "${pkglibdir}/mca_${plugin}.so")
    endif()
  endforeach()
  set(daemons "${OMPI_bindir}/orterun" "${OMPI_bindir}/orted")
  libraries(theirs EXECUTABLES ${daemons} MODULES ${modules})
  list(APPEND needed ${theirs})
  foreach(daemon ${daemons})
    get_filename_component(name "${daemon}" NAME)
    relocate("${daemon}" "${bindir}/${name}")
  endforeach()
  file(GLOB words "${OMPI_pkgdatadir}/help-*.txt")
  file(COPY ${words} DESTINATION "${root}/${pkgdatadir}")
  file(WRITE "${root}/openmpi/etc/openmpi-mca-params.conf" "pml = ob1\nbtl = self,vader,tcp\n")
  file(WRITE "${root}/openmpi/etc/openmpi-default-hostfile" "")
  # Its zlib plug-in stays behind: what PMIx would compress are the facts of hundreds of hosts.
  file(WRITE "${root}/openmpi/etc/pmix-mca-params.conf" "pcompress_base_silence_warning = 1\n")
endif()

list(REMOVE_DUPLICATES needed)
foreach(library ${needed})
  get_filename_component(name "${library}" NAME)
  relocate("${library}" "${FOLDER}/${name}")
  if(DPKG_QUERY)  # the terms under which it may be passed on
    get_filename_component(real "${library}" REALPATH)
    string(REGEX REPLACE "^/usr/" "/" unmerged "${real}")  # how packages from before /usr merged know it
    execute_process(COMMAND ${DPKG_QUERY} -S "${real}" "${unmerged}" OUTPUT_VARIABLE owner
                    ERROR_QUIET)
    string(REGEX REPLACE "[:,].*" "" owner "${owner}")
    if(owner AND EXISTS "/usr/share/doc/${owner}/copyright")
      get_filename_component(terms "/usr/share/doc/${owner}/copyright" REALPATH)
      file(MAKE_DIRECTORY "${root}/licenses")
      file(COPY_FILE "${terms}" "${root}/licenses/${owner}")
    endif()
  endif()
endforeach()
