"What the benchmarks share: sides that take turns, tables, and a section of RESULTS.md with machine, versions, date and command"
import os, platform, re, time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
import torch

file = Path(__file__).with_name('RESULTS.md')
HEAD = '# Results\n\nEach section was written by the command it names.\n'

def machine():
    "Processor, cores and memory, where the system tells, and the GPU"
    cpu = Path('/proc/cpuinfo')
    name = re.search(r'model name\s*: (.*)', cpu.read_text()) if cpu.exists() else None
    mem = os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')/2**30 if hasattr(os, 'sysconf') else 0
    gpu = f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''
    return f"{name[1] if name else platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores, {mem:.0f} GiB{gpu}"

def timed(f):
    "Seconds that `f` takes, what it left to the GPU included"
    start = time.perf_counter()
    f()
    if torch.cuda.is_available(): torch.cuda.synchronize()
    return time.perf_counter()-start

def turns(rounds, *fs):
    "Median seconds of each of `fs`, which take turns"
    return [median(o) for o in zip(*[[timed(f) for f in fs] for _ in range(rounds)])]

def table(rows):
    "Dicts as a table in Markdown"
    cols = list(rows[0])
    return '\n'.join(['| '+' | '.join(cols)+' |', '|'+'---|'*len(cols)] + ['| '+' | '.join(str(r[c]) for c in cols)+' |' for r in rows])

def met(ok): return 'met' if ok else '**not met**'

def write_section(title, command, body):
    "Replace or append the section `title`"
    versions = ', '.join([f'Python {platform.python_version()}', *[f'{o} {version(o)}' for o in ('fastai','torch','torchvision','timm')]])
    section = f'\n## {title}\n\n`python benchmarks/{command.strip()}`, {date.today()}, on {machine()}; {versions}.\n\n{body}\n'
    old = file.read_text(encoding='utf-8') if file.exists() else HEAD
    parts = [o for o in re.split(r'(?=^\n?## )', old, flags=re.M) if not o.strip().startswith(f'## {title}\n')]
    file.write_text(''.join(parts).rstrip('\n')+'\n'+section, encoding='utf-8')
    print(section)
