"The report's files, and its page in a real browser"
import csv, json, os, re, shutil
from html.parser import HTMLParser
import numpy as np, pytest
from PIL import Image
from fastai_clr.recipe import RecipeReport
from fastai_clr.report import figures, render
import fastai_clr.report as report_module

EVIL = '<script>document.title="run"</script>&"\''

def make_report(**kw):
    "A small but whole report, with names that are HTML"
    lrs = {3: '1.0e-03', 4: None, 8: '2.0e-05 to 1.0e-04'}
    steps = [dict(step=s, title=f'step {s}', detail=EVIL if s==4 else '', lr=lrs[s], epochs=2, seconds=1.5, train_loss=1., valid_loss=.5, metric=.9) for s in (3,4,8)]
    batches = [dict(step=s, lr=1e-3*(20-i)/20, loss=2-i/20) for s in (3,4,8) for i in range(20)]
    epochs = [dict(step=s, epoch=i, batches=10*(i+1), train_loss=1., valid_loss=.7-.1*i, accuracy=.8) for s in (3,4,8) for i in range(2)]
    mistake = dict(true=EVIL, predicted='b', prob=.9, loss=3., name=EVIL, picture=np.full((8,6,3), 200, np.uint8))
    return RecipeReport(**{**dict(settings={'pictures': EVIL, 'seed': 42}, versions={'torch': '2'}, metric_name='accuracy', steps=steps, batches=batches, epochs=epochs,
        lr_finds=[dict(step=2, lrs=list(np.logspace(-6,0,50)), losses=list(np.linspace(2,1,50)), lr=1e-3)], vocab=[EVIL,'b'], confusion=[[9,1],[0,10]],
        mistakes=[mistake, {**mistake, 'picture': None}], finished=True), **kw})

class Tags(HTMLParser):
    "All tags with their attributes"
    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))

def test_files(tmp_path):
    r = make_report()
    page = r.save(tmp_path/'new')
    assert sorted(o.name for o in page.parent.iterdir()) == ['figures','history.csv','report.html','report.json']
    rows = list(csv.DictReader((page.parent/'history.csv').open()))
    assert len(rows)==6 and rows[1]['valid_loss']==str(.7-.1)
    d = json.loads((page.parent/'report.json').read_text())
    assert d['steps']==r.steps and d['finished'] and d['mistakes'][0]['true']==EVIL and 'picture' not in d['mistakes'][0]
    pngs = {o.stem for o in (page.parent/'figures').glob('*.png')}
    assert pngs == {'lr_find_step2','lr','loss','metric','confusion'}
    assert all(Image.open(o).size[0]>200 for o in (page.parent/'figures').iterdir())

def test_names_that_are_no_text(tmp_path):
    "Bytes of a file system that are no UTF-8, and dollars, which are no formula"
    odd,vocab = os.fsdecode(b'caf\xe9.png'),['$10_$20',os.fsdecode(b'\xe9t\xe9')]
    r = make_report(vocab=vocab, settings={'pictures': odd, 'seed': 42})
    r.mistakes[0].update(name=odd, true=vocab[1])
    page = r.save(tmp_path).read_text(encoding='utf-8')
    assert 'caf\\udce9.png' in page and json.loads((tmp_path/'report.json').read_text())['settings']['pictures']==odd

def test_page_is_self_contained_and_escaped():
    r = make_report()
    page = render(r, figures(r))
    tags = Tags(page).tags
    assert [a for t,a in tags if t=='script']==[{}] and 'link' not in {t for t,_ in tags}   # the page's own, which sorts tables
    images = [a for t,a in tags if t=='img']
    assert len(images)==6 and all(a['src'].startswith('data:image/png;base64,') and a['alt'] for a in images)
    assert 'http' not in page

def test_numbers_that_json_lacks(tmp_path):
    r = make_report()
    r.epochs[0]['valid_loss'] = float('nan')
    r.save(tmp_path)
    assert json.loads((tmp_path/'report.json').read_text(), parse_constant=pytest.fail)['epochs'][0]['valid_loss'] is None

@pytest.mark.parametrize('kw', [dict(steps=[], batches=[], epochs=[], lr_finds=[], confusion=[], vocab=[], mistakes=[], finished=False),
    dict(finished=False), dict(metric_name=None, confusion=[], mistakes=[])])
def test_partial_reports(tmp_path, kw):
    page = make_report(**kw).save(tmp_path).read_text()
    assert ('Not finished' in page) == (not kw.get('finished', True))

def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    r = make_report()
    r.save(tmp_path)
    before = (tmp_path/'report.json').read_bytes()
    def fail(*a): raise OSError('No space left on device')
    monkeypatch.setattr(report_module.os, 'replace', fail)
    r.settings['seed'] = 43
    with pytest.raises(OSError): r.save(tmp_path)
    assert (tmp_path/'report.json').read_bytes()==before and not [o for o in tmp_path.rglob('.*')]

@pytest.fixture
def page(tmp_path):
    "A browser page with the report open, what it complained of, and what it asked of others"
    exe = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if exe is None and not os.environ.get('REQUIRE_BROWSER'): pytest.skip('no Chromium here: install it to test the page in a browser')
    assert exe, 'REQUIRE_BROWSER is set, and there is no Chromium'
    from playwright.sync_api import sync_playwright
    args = ['--no-sandbox','--disable-gpu','--disable-background-networking','--disable-component-update','--disable-sync']
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=exe, args=args)
        page = browser.new_page()
        page.errors,page.asked = [],[]
        page.on('console', lambda m: page.errors.append(m.text) if m.type=='error' else None)
        page.on('pageerror', lambda e: page.errors.append(str(e)))
        page.on('request', lambda r: page.asked.append(r.url))
        page.goto(make_report().save(tmp_path).as_uri())
        yield page
        browser.close()

def test_in_a_browser(page):
    assert page.errors==[] and [o for o in page.asked if not o.startswith(('file:','data:'))]==[]
    assert page.eval_on_selector_all('img', 'l => l.map(o => o.complete && o.naturalWidth>0)') == [True]*6
    assert page.title().startswith('Training report: <script>')       # shown as text, not run
    assert page.locator('table').first.locator('tbody tr').count()==3
    page.set_viewport_size(dict(width=390, height=800))
    assert page.evaluate('document.documentElement.scrollWidth') <= 390

def test_tables_sort(page):
    "By a click, and by the keyboard; numbers as numbers, what is missing at the end"
    def column(i): return page.eval_on_selector_all('table:first-of-type tbody tr', f'l => l.map(o => o.cells[{i}].innerText)')
    head = page.locator('table').first.locator('th')
    steps = column(0)
    head.nth(0).click()
    assert column(0)==sorted(steps, key=int) and head.nth(0).get_attribute('aria-sort')=='ascending'
    head.nth(0).press('Enter')
    assert column(0)==sorted(steps, key=int, reverse=True) and head.nth(0).get_attribute('aria-sort')=='descending'
    head.nth(2).press(' ')
    assert column(2)==['2.0e-05 to 1.0e-04','1.0e-03',''] and head.nth(0).get_attribute('aria-sort') is None
    assert page.errors==[]

def test_figures_of_an_earlier_report_go(tmp_path):
    make_report().save(tmp_path)
    make_report(confusion=[], lr_finds=[]).save(tmp_path)
    assert {o.stem for o in (tmp_path/'figures').iterdir()}=={'lr','loss','metric'}

def test_what_else_the_page_says(tmp_path):
    page = make_report(candidates=[dict(name=k, valid_loss=v, metric=m) for k,v,m in (('step 3',.5,.8),('step 8',.4,None))], kept='step 8', stopped='stopped after cycle 1',
        ensemble=dict(name='e', n=3, valid_loss=.3, metric=.9512), test=dict(pictures=1234, loss=.25, accuracy=.5)).save(tmp_path).read_text()
    text = ' '.join(re.sub('<[^>]+>', '', page).split())
    for o in ('Step 8 stopped after cycle 1.', 'an ensemble of 3 models (snapshots e); the best single model: step 8.', '95.12% accuracy on the validation set',
        '1,234 pictures, scored once: loss 0.2500, accuracy 0.5000', 'The models that were compared', 'step 30.50000.8000'): assert o in text, o
