"Write README.md from nbs/index.ipynb as `nbdev-readme` does, without Quarto. Usage: `python tools/build_readme.py`"
import os, re, shutil
from base64 import b64decode
from fastcore.nbio import nb_frontmatter, read_nb
from nbdev.config import get_config
from nbdev.quarto import refresh_quarto_yml
from nbdev.readme_filter import doc_link
from nbdev.serve import proc_nbs

# GitHub shows the style sheet of a pandas table as text
_style = re.compile(r'<style.*?</style>\s*', re.S)
_link = re.compile(r'(?<=\]\()([^)\s]+)(?=\))')

def md_source(s, cfg):
    "Markdown `s` with own-docs links made absolute and fences as Pandoc writes them"
    parts = re.split(r'(^```.*?^```\s*$)', s.strip(), flags=re.M|re.S)
    return ''.join(re.sub(r'^```(?=\w)', '``` ', p) if p.startswith('```') else _link.sub(lambda m: doc_link(m[1], cfg.doc_url), p) for p in parts)

def output(o, i, j, imgs):
    "Markdown for output `o`, the `j`th of cell `i`; images are saved in `imgs`"
    if o.output_type=='stream': txt = ''.join(o.text)
    elif o.output_type=='error': return ''
    else:
        d = o.data
        if 'image/png' in d:
            imgs.mkdir(parents=True, exist_ok=True)
            f = imgs/f'cell-{i}-output-{j}.png'
            f.write_bytes(b64decode(d['image/png']))
            return f'![]({f.relative_to(imgs.parents[1]).as_posix()})'
        for k in 'text/html','text/markdown':
            if k in d: return _style.sub('', ''.join(d[k])).replace('<div></div>', '').strip()
        txt = ''.join(d.get('text/plain', ''))
    return '\n'.join(f'    {l}'.rstrip() for l in txt.rstrip().splitlines())

def cell_md(c, i, cfg, imgs):
    "Markdown blocks for cell `c`"
    if c.cell_type=='markdown': return [md_source(c.source, cfg)]
    if c.cell_type!='code': return []
    code = '\n'.join(o for o in c.source.splitlines() if not o.startswith('#|')).strip()
    res = [] if '#| echo: false' in c.source else [f'``` python\n{code}\n```']
    if '#| output: false' in c.source: return res
    return res + [output(o, i, j, imgs) for j,o in enumerate(c.outputs, 1)]

def main():
    cfg = get_config()
    os.chdir(cfg.config_path)
    refresh_quarto_yml()
    nb = read_nb(proc_nbs(cfg.nbs_path, n_workers=2, file_glob=cfg.readme_nb)/cfg.readme_nb)
    imgs = cfg.config_path/'index_files/figure-commonmark'
    shutil.rmtree(imgs.parent, ignore_errors=True)
    n,blocks = 0,[]
    for c in nb.cells:
        n += c.cell_type=='code'
        blocks += cell_md(c, n+1, cfg, imgs)
    body = '\n\n'.join(b for b in blocks if b.strip())
    (cfg.config_path/'README.md').write_text(f"# {nb_frontmatter(nb)['title']}\n\n\n{body}\n", encoding='utf-8')

if __name__ == '__main__': main()
