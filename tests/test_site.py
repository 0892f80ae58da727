"The built site, as `make docs` leaves it in _docs: links lead somewhere, pages ask no other host and complain of nothing, and fit on a phone"
import functools, http.server, importlib, os, re, shutil, sys, threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit
import pytest

ROOT = Path(__file__).parent.parent
SITE = ROOT/'_docs'
needed = bool(os.environ.get('REQUIRE_BROWSER'))
if not SITE.exists() and (not needed or sys.version_info<(3,11)):   # what builds it needs Python 3.11
    pytest.skip('no site here: `make docs` builds it', allow_module_level=True)
PAGES = sorted(str(o.relative_to(SITE)) for o in SITE.rglob('*.html'))

class _Parts(HTMLParser):
    "Where a page leads, and what can be led to in it"
    def __init__(self, text):
        super().__init__()
        self.links,self.ids = [],set()
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ('id','name') if attrs.get(k)}
        if tag=='a' and attrs.get('href'): self.links.append(attrs['href'])

@functools.cache
def parts(page): return _Parts((SITE/page).read_text(encoding='utf-8'))

def _lost(page):
    "Links within the site that lead nowhere"
    for link in parts(page).links:
        if urlsplit(link).scheme or link.startswith('//'): continue
        to = urlsplit(urljoin('/'+page, link))
        path = unquote(to.path).lstrip('/') or 'index.html'
        if path.endswith('/'): path += 'index.html'
        if not (SITE/path).exists() or to.fragment and path.endswith('.html') and unquote(to.fragment) not in parts(path).ids: yield link

def test_there_is_a_page_for_each_notebook():
    nbs = [o for o in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in o.parts]
    names = {str(o.parent.relative_to(ROOT/'nbs')/(o.stem.split('_', 1)[1] if o.stem[:2].isdigit() else o.stem))+'.html' for o in nbs}
    assert len(nbs)>20 and names<={*PAGES}

@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page): assert list(_lost(page))==[]

def test_the_sidebar_leads_to_every_page():
    led = {unquote(urlsplit(urljoin('/', o)).path).lstrip('/') for o in parts('plots.html').links}   # a page that leads to few others by itself
    assert {o for o in PAGES if o!='404.html'} <= led | {'index.html'}

MODULES = {o.stem: importlib.import_module(f'fastai_clr.{o.stem}') for o in (ROOT/'fastai_clr').glob('*.py') if o.stem not in ('all','_modidx','__init__')}

def test_the_sidebar_has_its_groups():
    names = re.findall(r'section: (.+)', (Path(__file__).parents[1]/'nbs/sidebar.yml').read_text(encoding='utf-8'))
    assert names==['Start','Tutorials','How-to','Reference','Benchmarks']

@pytest.mark.parametrize('module', sorted(MODULES))
def test_names_lead_to_their_source(module):
    "What a module exports, and what it adds to a Learner, has a heading and a link to the line where it is defined"
    lines = (ROOT/f'fastai_clr/{module}.py').read_text(encoding='utf-8').splitlines()
    linked = [lines[int(m[1])-1] for o in parts(f'{module}.html').links if (m := re.search(rf'/blob/main/fastai_clr/{module}\.py#L(\d+)$', o))]
    defined = [re.match(r'(?:def|class) (\w+)', o) for o in linked]
    assert {k for k in MODULES[module].__all__ if callable(getattr(MODULES[module], k))} <= {o[1] for o in defined if o}
    added = {re.match(r'def (\w+)', b)[1] for a,b in zip(lines, lines[1:]) if a=='@patch' and re.match(r'def [a-z]\w*\(self:Learner', b)}
    assert added <= {o[1] for o in defined if o}

def test_names_of_fastai_lead_to_its_pages():
    led = {o for p in PAGES for o in parts(p).links if o.startswith('https://docs.fast.ai/')}
    assert {f'https://docs.fast.ai/{o}' for o in ('learner.html#learner','learner.html#load_learner','vision.learner.html#vision_learner',
        'callback.schedule.html#lrfinder','callback.tracker.html#reducelronplateau')} <= led

@pytest.fixture(scope='module')
def site():
    "Address of the site, served here"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *a): return
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(SITE)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}/'
    server.shutdown()
    server.server_close()
    thread.join()

@pytest.fixture(scope='module')
def browser():
    exe = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if exe is None and not needed: pytest.skip('no Chromium here: install it to test the site in a browser')
    assert exe, 'REQUIRE_BROWSER is set, and there is no Chromium'
    from playwright.sync_api import sync_playwright
    args = ['--no-sandbox','--disable-gpu','--disable-background-networking','--disable-component-update','--disable-sync']
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=exe, args=args)
        yield browser
        browser.close()

@pytest.fixture(params=['light','dark'])
def tab(browser, request):
    "A page of a phone's width, what it complained of, and what it asked for"
    tab = browser.new_page(color_scheme=request.param, viewport=dict(width=390, height=800))
    tab.errors,tab.asked = [],[]
    tab.on('console', lambda m: tab.errors.append(m.text) if m.type=='error' else None)
    tab.on('pageerror', lambda e: tab.errors.append(str(e)))
    tab.on('request', lambda r: tab.asked.append(r.url))
    tab.on('requestfailed', lambda r: tab.errors.append(f'{r.url}: {r.failure}') if r.failure!='net::ERR_ABORTED' else None)   # by leaving the page
    yield tab
    tab.close()

def test_pages_in_a_browser(tab, site):
    wrong = {}
    for o in PAGES:
        tab.errors.clear()
        tab.asked.clear()
        tab.goto(site+o, wait_until='load')
        lost = tab.eval_on_selector_all('img', 'l => l.filter(o => !(o.complete && o.naturalWidth>0)).map(o => o.src.slice(0, 80))')
        others = [u for u in tab.asked if not u.startswith((site,'data:','blob:'))]
        wide = tab.evaluate('document.documentElement.scrollWidth')
        if tab.errors or lost or others or wide>390: wrong[o] = [*tab.errors, *lost, *others, wide]
    assert wrong=={}

@pytest.mark.parametrize('scheme,dark', [('light',False),('dark',True)])
def test_pages_are_light_or_dark_as_the_reader_likes(browser, site, scheme, dark):
    "By what the browser asks for, until the switch is used"
    tab = browser.new_page(color_scheme=scheme)
    tab.goto(site)
    def brightness(of): return sum(map(int, re.findall(r'\d+', tab.evaluate(f"getComputedStyle(document.querySelector('{of}'))"+('.backgroundColor' if of=='body' else '.color')))[:3]))/765
    def is_dark(): return brightness('body')<.3 and brightness('main p')>.7
    assert is_dark()==dark and (dark or brightness('body')>.9)
    tab.locator('.quarto-color-scheme-toggle:visible').first.click()
    tab.wait_for_function("document.documentElement.classList.contains('quarto-dark')==" + ('false' if dark else 'true'))
    assert is_dark()!=dark
    tab.close()

def test_search_finds(browser, site):
    tab = browser.new_page()
    tab.goto(site)
    box = tab.locator('#quarto-search input')
    if not box.count() or not box.first.is_visible(): tab.locator('#quarto-search button').first.click()
    tab.locator('#quarto-search input').first.fill('precompute')
    tab.wait_for_selector('.smalldocs-search-results a[href*="precompute.html"]:visible')
    tab.close()

def test_formulas_are_shown(browser, site):
    tab = browser.new_page()
    tab.goto(site+'schedules.html')
    assert tab.locator('math').count()>=5 and r'\eta' not in tab.inner_text('main')
    tab.close()
