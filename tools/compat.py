"""Test with the oldest versions that settings.ini allows, and with the newest there are, each in a virtual environment of its own

    python tools/compat.py            both, in .compat/oldest and .compat/newest
    python tools/compat.py oldest     one of them
    python3.10 tools/compat.py oldest   with that Python, of which the environment is made

The environments stay, so that a second run installs what is new only. Other arguments go to pytest, in place of the tests that it runs by default.
"""
import os, subprocess, sys, venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORNERS = dict(oldest=['-c', str(ROOT/'tools/oldest.txt')], newest=['--upgrade', '--upgrade-strategy', 'eager'])
# What a Learner, its data and its files go through; the site, and how the package is built, are other tests'
TESTS = ['tests/compat','tests/parity','tests/test_schedules.py','tests/test_cycles.py','tests/test_snapshots.py','tests/test_resume.py','tests/test_fit.py',
    'tests/test_lr_range.py','tests/test_precompute.py','tests/test_precompute_models.py','tests/test_heads.py','tests/test_data.py','tests/test_recipe.py',
    'tests/test_cli.py','tests/test_report.py']
SHOW = "import platform, fastai, torch, torchvision, timm, numpy; print(platform.python_version(), *[f'{o.__name__} {o.__version__}' for o in (fastai, torch, torchvision, timm, numpy)])"

def test(corner, args):
    "Install what a corner wants, say what came, and run the tests; pytest's exit status"
    env,py = ROOT/'.compat'/corner,ROOT/'.compat'/corner/('Scripts/python.exe' if os.name=='nt' else 'bin/python')
    if not py.exists(): venv.create(env, with_pip=True)
    print(f'== {corner}: installing in {env}', flush=True)
    subprocess.run([py, '-m', 'pip', 'install', '-q', *CORNERS[corner], '-e', f'{ROOT}[timm,demo,distributed]', 'pytest', 'hypothesis', 'psutil', 'playwright'], check=True)
    print(f"== {corner}: {subprocess.run([py, '-W', 'ignore', '-c', SHOW], check=True, capture_output=True, text=True).stdout.strip()}", flush=True)
    return subprocess.run([py, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', *(args or TESTS)], cwd=ROOT).returncode

if __name__=='__main__':
    corners = [o for o in sys.argv[1:] if o in CORNERS]
    args = [o for o in sys.argv[1:] if o not in CORNERS]
    failed = [o for o in corners or CORNERS if test(o, args)]
    sys.exit(f"Failed with the {' and the '.join(failed)} versions" if failed else 0)
