#!/usr/bin/env bash
# Run the tests on the given Pythons, as far as this machine has them, each with its own minor version of JAX:
# 3.11 takes the newest JAX there is for it (0.10), 3.12 the newest 0.11, 3.13 the newest of all (0.12).
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
summary=()
status=0
ran=0
declare -A jax_for=([3.11]='jax>=0.10,<0.11' [3.12]='jax>=0.11,<0.12' [3.13]='jax>=0.12')
[ $# -gt 0 ] || set -- 3.11 3.12 3.13
for version in "$@"; do
    jax=${jax_for[$version]:?no JAX is named for this Python}
    python=$(find_python "$version")
    if [ -z "$python" ]; then
        summary+=("Python $version: not on this machine, not run")
        continue
    fi
    venv=.venv-$version
    if [ pyproject.toml -nt "$venv/.installed" ]; then
        "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[test]' "$jax"
        touch "$venv/.installed"
    fi
    versions=$("$venv/bin/python" -c "import sys, jax, jaxlib; print(f'Python {sys.version.split()[0]}, jax {jax.__version__}, jaxlib {jaxlib.__version__}')")
    echo "== $versions"
    ran=1
    if XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=0" "$venv/bin/python" -m pytest -q -n auto \
        -p no:cacheprovider -m "not thorough" -k "not float32" "${files[@]}"; then
        summary+=("$versions: passed")
    else
        summary+=("$versions: FAILED")
        status=1
    fi
done
printf '\nmatrix\n'
printf '  %s\n' "${summary[@]}"
[ $ran = 1 ] || status=1
exit $status
