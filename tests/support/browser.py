"""Headless Chromium (Qt WebEngine) on one page, in a process of its own: steps come in, findings go out, as JSON.

The page is a file or an http address. A step is [action, argument, …]: "js" an expression, "until" one that is to come
true, "click", "hover" or "focus" a selector, "type" a selector and the text that replaces what stands there, "key" a
name of Qt's keys, "upload" a selector and the file to choose, "file" one that is downloaded, "shot" a file. Findings: a
value for each step, all messages of the console, all addresses that were asked for. Exit code 3 with a line on standard
error: there is no browser here.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QTWEBENGINE_DISABLE_SANDBOX", "1")
os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--disable-gpu --disable-background-networking --disable-sync")

try:
    from PySide6.QtCore import QEventLoop, QPoint, Qt, QTimer, QUrl
    from PySide6.QtTest import QTest
    from PySide6.QtWebEngineCore import QWebEnginePage, QWebEngineUrlRequestInterceptor
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication
except ImportError as error:  # not installed, or a library of the system is missing
    print(f"Qt WebEngine does not load: {error}", file=sys.stderr)
    sys.exit(3)

SIZE = (1240, 900)
PATIENCE = 150_000
"""Milliseconds for one thing to happen."""


class Page(QWebEnginePage):
    def __init__(self, view):
        super().__init__(view)
        self.messages, self.file = [], ""

    def chooseFiles(self, mode, old, types):
        return [self.file]

    def javaScriptConsoleMessage(self, level, message, line, source):
        self.messages.append([level.name, message, line])


class Requests(QWebEngineUrlRequestInterceptor):
    def __init__(self):
        super().__init__()
        self.asked = []

    def interceptRequest(self, info):
        self.asked.append(info.requestUrl().toString()[:200])


class Browser:
    def __init__(self, address):
        self.view, self.requests = QWebEngineView(), Requests()
        self.page = Page(self.view)
        self.page.profile().setUrlRequestInterceptor(self.requests)
        self.page.profile().downloadRequested.connect(self.download)
        self.view.setPage(self.page)
        self.view.resize(*SIZE)
        self.view.show()
        url = QUrl(address) if address.startswith("http:") else QUrl.fromLocalFile(address)
        if not wait(lambda done: (self.page.loadFinished.connect(done), self.page.load(url))):
            sys.exit(f"the page did not load: {address}")

    def download(self, item):
        item.setDownloadDirectory(os.environ["HOME"])
        item.accept()

    def file(self, path):
        """Wait for a file that was downloaded, to HOME."""
        end = time.monotonic() + PATIENCE / 1000
        while not os.path.exists(path):
            if time.monotonic() > end:
                sys.exit(f"never saved: {path}")
            QTest.qWait(50)

    def js(self, code):
        text = wait(lambda done: self.page.runJavaScript(f"JSON.stringify((() => ({code}))())", done))
        return json.loads(text) if text else None

    def until(self, code):
        """Wait for an expression to come true; its value."""
        end = time.monotonic() + PATIENCE / 1000
        while not (value := self.js(code)):
            if time.monotonic() > end:
                sys.exit(f"never true: {code}; the page says: {self.js('document.body.innerText')[:1500]}")
            QTest.qWait(50)
        return value

    def settle(self):
        """Until the page has drawn three more frames: what was pressed is then dealt with, on a slow machine too."""
        QTest.qWait(100)
        self.js("(window.left = 3, window.tick = () => --window.left > 0 && requestAnimationFrame(window.tick), 0)")
        self.js("(requestAnimationFrame(window.tick), 0)")
        while self.js("window.left") > 0:
            QTest.qWait(20)

    def place(self, selector):
        """The middle of an element, scrolled into view."""
        found = self.js(
            f"(n => (n.scrollIntoView({{block: 'center'}}), n.getBoundingClientRect()))"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        self.settle()
        return QPoint(round(found["x"] + found["width"] / 2), round(found["y"] + found["height"] / 2))

    def click(self, selector):
        QTest.mouseClick(self.view.focusProxy(), Qt.MouseButton.LeftButton, pos=self.place(selector))
        self.settle()

    def hover(self, selector):
        place = self.place(selector)
        QTest.mouseMove(self.view.focusProxy(), place - QPoint(40, 40))
        QTest.mouseMove(self.view.focusProxy(), place)
        self.settle()

    def focus(self, selector):
        self.js(f"document.querySelector({json.dumps(selector)}).focus()")

    def type(self, selector, text):
        self.focus(selector)
        self.js(f"document.querySelector({json.dumps(selector)}).select()")
        keyboard = self.view.focusProxy()
        QTest.keyClick(keyboard, Qt.Key.Key_Delete)
        QTest.keyClicks(keyboard, text)
        self.settle()

    def upload(self, selector, path):
        self.page.file = path
        self.click(selector)

    def key(self, name):
        QTest.keyClick(self.view.focusProxy(), getattr(Qt.Key, f"Key_{name}"))
        self.settle()

    def shot(self, path):
        """The whole page, as far as it is no longer than a picture may be."""
        self.view.resize(SIZE[0], min(6000, self.js("document.documentElement.scrollHeight")))
        QTest.qWait(600)
        self.view.grab().save(path)
        self.view.resize(*SIZE)


def wait(start):
    """Run the event loop until what ``start`` sets off calls back; its argument."""
    loop, found = QEventLoop(), []
    QTimer.singleShot(PATIENCE, loop.quit)
    start(lambda value=None: (found.append(value), loop.quit()))
    if not found:
        loop.exec()
    return found[0] if found else None


if __name__ == "__main__":
    application = QApplication(["browser"])
    browser = Browser(sys.argv[1])
    values = [getattr(browser, action)(*arguments) for action, *arguments in json.load(sys.stdin)]
    print(json.dumps({"values": values, "console": browser.page.messages, "requests": browser.requests.asked}))
    sys.stdout.flush()
    os._exit(0)  # Qt's own teardown is not what is tested
