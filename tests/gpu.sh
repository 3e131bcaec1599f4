#!/usr/bin/env bash
# Proves an unpacked package on the GPUs of this machine; see gpu_report.py, or --help.
exec python3 "$(dirname "${BASH_SOURCE[0]}")/gpu_report.py" "$@"
