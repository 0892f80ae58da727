"""How many mistakes the tests find: change a module at one place, run its tests, and count those changes that no test minds

    python benchmarks/bench_mutation.py schedules activations snapshots

The changes are cosmic-ray's (`pip install cosmic-ray`): an operator, a number, a comparison, a keyword and the like becomes another. Of all that there
are, --n are drawn for each module, always the same with the same --seed. Each is tried in a process of its own, forked from one that has torch, fastai
and pytest in memory, on a copy of the package: the working tree stays as it is. A change that ends the tests with an error, or makes them take three
times as long, was found. Those that were not are listed with the reason that mutants.txt gives, a line each: module, line before, line
after, reason, with tabs between. Results are kept in .mutants, so that a run that is broken off goes on, and what
was not found is tried again once there are other tests; with --table they go to benchmarks/RESULTS.md.
"""
import argparse, ast, hashlib, json, os, random, shutil, signal, sys, tempfile, time
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = {'schedules': ['tests/test_schedules.py','tests/parity/test_schedules_parity.py','tests/test_cli_schedule.py','tests/test_cycles.py'],
         'activations': ['tests/test_activations.py','tests/faults/test_store_faults.py'], 'snapshots': ['tests/test_snapshots.py','tests/test_fit.py']}

def annotations(source):
    "Lines and columns, from and to, of what a running program never looks at: types in signatures and in dataclasses"
    found = []
    for o in ast.walk(ast.parse(source)):
        for a in (getattr(o, 'annotation', None),getattr(o, 'returns', None)):
            if isinstance(a, ast.AST): found.append(((a.lineno,a.col_offset),(a.end_lineno,a.end_col_offset)))
    return found

def mutants(source):
    "All changes of a module: operator, its arguments, occurrence, line"
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names
    tree,skip = get_ast(source),annotations(source)
    for name in operator_names():
        cls = get_operator(name)
        if cls.arguments() or name.endswith('/NoOp'): continue
        places = [p for n in ast_nodes(tree) for p in cls().mutation_positions(n)]
        yield from ((name, i, a[0]) for i,(a,b) in enumerate(places) if not any(s<=a and b<=e for s,e in skip))

def mutate(source, name, occurrence):
    "The changed source, and the first line that differs, before and after"
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator
    new = mutate_code(source, get_operator(name)(), occurrence)
    old_lines,new_lines = source.splitlines(),new.splitlines()
    i = next((i for i,(a,b) in enumerate(zip(old_lines, new_lines)) if a!=b), min(len(old_lines), len(new_lines))-1)
    return new,i+1,old_lines[i].strip(),new_lines[i].strip()

def start(module, source, log):
    "Fork a process that runs the tests of `module` with `source` in its place; its id and the folder of its copy"
    tmp = tempfile.mkdtemp(prefix='mutant-')
    shutil.copytree(ROOT/'fastai_clr', f'{tmp}/fastai_clr', ignore=shutil.ignore_patterns('__pycache__'))
    Path(tmp, f'fastai_clr/{module}.py').write_text(source, encoding='utf-8')
    pid = os.fork()
    if pid: return pid,tmp
    os.setsid()
    out = os.open(log, os.O_WRONLY|os.O_CREAT|os.O_TRUNC)
    for fd in (1,2): os.dup2(out, fd)
    os.environ.update(PYTHONPATH=tmp, TMPDIR=tmp, HYPOTHESIS_STORAGE_DIRECTORY=f'{tmp}/hypothesis')
    tempfile.tempdir = None
    sys.path.insert(0, tmp)
    import fastai_clr, pytest
    if not fastai_clr.__file__.startswith(tmp): os._exit(99)
    os._exit(pytest.main(['-x', '-q', '-p', 'no:cacheprovider', f'--basetemp={tmp}/tests', *TESTS[module]]))

def finish(jobs, limit):
    "Wait for one of the processes, or until one has had its time; its number, the tests' exit status (`None`: it was ended), and seconds"
    while True:
        for pid,(k,tmp,begun) in list(jobs.items()):
            done,status = os.waitpid(pid, os.WNOHANG)
            if not done and time.monotonic()-begun<limit: continue
            if not done:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            del jobs[pid]
            shutil.rmtree(tmp, ignore_errors=True)
            return k,os.waitstatus_to_exitcode(status) if done else None,time.monotonic()-begun
        time.sleep(.05)

def run(module, n, seed, n_jobs, folder):
    "Try the changes of a module that were not tried yet"
    source = (ROOT/f'fastai_clr/{module}.py').read_text(encoding='utf-8')
    every,file = list(mutants(source)),folder/f'{module}.json'
    done = json.loads(file.read_text()) if file.exists() else {}
    if done.get('source')!=source:
        pid,tmp = start(module, source, folder/f'{module}.log')
        _,status,secs = finish({pid: (0,tmp,time.monotonic())}, 3600)
        if status: sys.exit(f"the tests of {module} fail as it is: see {folder/f'{module}.log'}")
        done = dict(source=source, seconds=secs, found={})
    tests = hashlib.sha256(''.join((ROOT/o).read_text(encoding='utf-8') for o in TESTS[module]).encode()).hexdigest()
    if done.get('tests')!=tests: done.update(tests=tests, found={k: v for k,v in done['found'].items() if v['status']!=0})   # new tests may mind the others
    random.Random(seed).shuffle(every)
    drawn = every[:n]
    todo,jobs = [o for o in drawn if f'{o[0]} {o[1]}' not in done['found']],{}
    print(f"{module}: {len(every)} changes, {len(drawn)} drawn, {len(todo)} to try; the tests take {done['seconds']:.0f} s", flush=True)
    while todo or jobs:
        while todo and len(jobs)<n_jobs:
            name,i,_ = todo.pop(0)
            new,line,before,after = mutate(source, name, i)
            pid,tmp = start(module, new, folder/f'{module}-{os.getpid()}-{len(todo)}.log')
            jobs[pid] = (dict(key=f'{name} {i}', line=line, before=before, after=after),tmp,time.monotonic())
        what,status,secs = finish(jobs, 3*done['seconds']+30)
        if status==99: sys.exit('the copy of the package is not what is imported: is PYTHONPATH set?')
        done['found'][what.pop('key')] = dict(what, status=status, seconds=round(secs, 1))
        tmp = file.with_suffix('.tmp')
        tmp.write_text(json.dumps(done))
        tmp.rename(file)
    return [done['found'][f'{o[0]} {o[1]}'] for o in drawn],len(every)

def reasons():
    "Why a change makes no difference that a test should mind, by module, line before and line after"
    f = Path(__file__).with_name('mutants.txt')
    lines = [o.split('\t') for o in f.read_text(encoding='utf-8').splitlines() if o and not o.startswith('#')] if f.exists() else []
    return {tuple(o[:3]): o[3] for o in lines}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('modules', nargs='+', choices=TESTS)
    p.add_argument('--n', type=int, default=100, help='changes of each module that are tried (default: %(default)s)')
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--jobs', type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument('--table', action='store_true', help='write the results to benchmarks/RESULTS.md')
    o = p.parse_args()
    os.chdir(ROOT)
    os.environ.update(OMP_NUM_THREADS='1', MPLBACKEND='Agg')
    for k in ('fastai.vision.all','fastai.text.all','hypothesis','pytest','scipy.stats','sklearn.datasets','timm'): import_module(k)   # in memory for all that are forked
    folder,why,rows,left = ROOT/'.mutants',reasons(),[],[]
    folder.mkdir(exist_ok=True)
    for m in o.modules:
        res,total = run(m, o.n, o.seed, o.jobs, folder)
        lived = [r for r in res if r['status']==0]
        rows.append(dict(module=m, changes=total, tried=len(res), found=len(res)-len(lived), share=f'{1-len(lived)/len(res):.0%}', wanted='85%'))
        left += [dict(line=f"{m} {r['line']}", before=r['before'], after=r['after'], reason=why.get((m,r['before'],r['after']), 'not looked at yet')) for r in lived]
    for r in rows: print(r)
    for r in left: print('\n{line}\n- {before}\n+ {after}\n  {reason}'.format(**r))
    if o.table: write(o, rows, left)
    if any(r['found']<.85*r['tried'] for r in rows): sys.exit('less than 85% of the changes were found')

def write(o, rows, left):
    "The section of benchmarks/RESULTS.md"
    from results import table, write_section
    def code(s): return '`` '+s.replace('|', '\\|')+' ``'
    left = [{**r, 'before': code(r['before']), 'after': code(r['after'])} for r in left]
    write_section('Mistakes that the tests find', f"bench_mutation.py {' '.join(o.modules)} --n {o.n} --seed {o.seed} --table",
        f"A module is changed at one place, and its tests are run: how many of the changes end them with an error. {o.n} of each module, drawn by chance; "
        "where one of them showed a gap, a test was added, and it counts as found: the share is that of the tests as they are now, on changes they have seen."
        f"\n\n{table(rows)}\n\nThose that no test minded:\n\n{table(left)}")

if __name__=='__main__': main()
