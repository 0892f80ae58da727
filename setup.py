"Build the package from `settings.ini`: see `pyproject.toml` for the few facts that can't be there"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
config = ConfigParser(delimiters=['='])
config.read_string((root/'settings.ini').read_text(encoding='utf-8'))
cfg = config['DEFAULT']
def lines(k): return [o.strip() for o in cfg.get(k, '').splitlines() if o.strip()]
lib = cfg['lib_name']

extras = {k: lines(f'{k}_requirements') for k in ('timm', 'demo', 'distributed', 'dev')}
# Spelled out, not `fastai_clr[demo]`: a package that requires itself is beyond some installers
extras['dev'] += extras['demo']

setup(
    python_requires = f">={cfg['min_python']}",
    license_expression = cfg['license'],
    author = cfg['author'],
    author_email = cfg['author_email'],
    keywords = cfg['keywords'].split(),
    classifiers = [f"Development Status :: {cfg['status']}", f"Intended Audience :: {cfg['audience']}",
        'Programming Language :: Python :: 3', 'Programming Language :: Python :: 3 :: Only'],
    packages = find_packages(include=[lib, f'{lib}.*']),
    install_requires = lines('requirements'),
    extras_require = extras,
    long_description = (root/'README.md').read_text(encoding='utf-8'),
    long_description_content_type = 'text/markdown',
    entry_points = {'nbdev': [f'{lib} = {lib}._modidx:d'], 'console_scripts': lines('console_scripts')},
)
