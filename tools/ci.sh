#!/usr/bin/env bash
# What CI checks: run it as `make test`, or with the virtual environment active
set -euo pipefail
cd "$(dirname "$0")/.."

state() { find "$@" -type f -not -path '*/__pycache__/*' -not -path '*/.ipynb_checkpoints/*' -exec cksum {} + 2>/dev/null | sort -k3; }

step() { # A name, then a command: say it, run it, say how long it took
  local t=$SECONDS
  echo "== $1"
  "${@:2}"
  echo "   $((SECONDS-t)) s"
}

in_step() { # A command, then the files and folders that it must leave as they are
  local before after
  before=$(state "${@:2}" || true)
  $1
  after=$(state "${@:2}" || true)
  [ "$before" != "$after" ] || return 0
  echo "Out of step: \"$1\" has just changed the files below; look at them, then commit them"
  diff <(echo "$before") <(echo "$after") | sed -nE 's/^[<>] [0-9]+ [0-9]+ /  /p' | sort -u
  exit 1
}

step 'Notebooks are clean'                in_step nbdev-clean nbs
step 'The package is in step with them'   in_step nbdev-export nbs fastai_clr pyproject.toml
step 'So is the README'                   in_step 'python tools/build_readme.py' nbs README.md index_files
step 'Style'                              chkstyle .
if python -c 'import sys; sys.exit(sys.version_info < (3,11))'; then
  step 'Docs build'                       in_step 'python tools/build_docs.py' nbs
else echo '== Docs are not built: smalldocs needs Python 3.11'
fi
# Two at a time with one thread each: two that both want all cores wait for each other most of the time
export OMP_NUM_THREADS=1
# Each in a process of its own: a module's notebook patches fastai's Learner, and the next one in that process would meet its methods
each_notebook() { find nbs -name '*.ipynb' -not -path '*/.*' -print0 | sort -rz | xargs -0 -n 1 -P 2 nbdev-test --n-workers 0; }
step 'Notebooks run'                      each_notebook
echo '== Tests'
exec python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
