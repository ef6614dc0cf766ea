#!/usr/bin/env bash
# Run the tests on the given Pythons, as far as this machine has them, each with its own minor version of JAX:
# 3.11 takes the newest JAX there is for it (0.10), 3.12 the newest 0.11, 3.13 the newest of all (0.12).
# With --install before them, only what they need is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() {
    local version=$1 candidate
    for candidate in "$(command -v "python$version" || true)" \
        "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
        if [ -x "$candidate" ] && "$candidate" -c "import sys, venv; sys.exit(sys.version_info[:2] != tuple(map(int, '$version'.split('.'))))" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}

# What reads or transforms JAX's programs, where its versions differ; the rest is for `make test` to see, as are the tests
# marked thorough, the other precision, and how hard XLA optimizes.
files=(gradlab)
for name in blame checking checkpoint descent fused graphs jaxprs mode prediction sparse waist; do
    files+=("tests/test_$name.py")
done
declare -A jax_for=([3.11]='jax>=0.10,<0.11' [3.12]='jax>=0.11,<0.12' [3.13]='jax>=0.12')
make_venv() {
    local python=$1 venv=$2 jax=$3
    if [ pyproject.toml -nt "$venv/.installed" ]; then
        "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[test]' "$jax"
        touch "$venv/.installed"
    fi
}

summary=()
status=0
ran=0
only_install=0
if [ "${1:-}" = --install ]; then
    only_install=1
    shift
fi
[ $# -gt 0 ] || set -- 3.11 3.12 3.13
# Side by side: a single one leaves the other cores idle.
declare -A installing
for version in "$@"; do
    jax=${jax_for[$version]:?no JAX is named for this Python}
    python=$(find_python "$version")
    if [ -z "$python" ]; then
        summary+=("Python $version: not on this machine, not run")
        continue
    fi
    make_venv "$python" ".venv-$version" "$jax" &
    installing[$version]=$!
done
for version in "$@"; do
    [ -n "${installing[$version]:-}" ] || continue
    wait "${installing[$version]}"
    [ $only_install = 0 ] || continue
    venv=.venv-$version
    versions=$("$venv/bin/python" -c "import sys, jax, jaxlib; print(f'Python {sys.version.split()[0]}, jax {jax.__version__}, jaxlib {jaxlib.__version__}')")
    echo "== $versions"
    ran=1
    if XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=0" "$venv/bin/python" -m pytest -q -n auto \
        --dist loadgroup -p no:cacheprovider -m "not thorough" -k "not float32" "${files[@]}"; then
        summary+=("$versions: passed")
    else
        summary+=("$versions: FAILED")
        status=1
    fi
done
[ $only_install = 0 ] || exit 0
printf '\nmatrix\n'
printf '  %s\n' "${summary[@]}"
[ $ran = 1 ] || status=1
exit $status
