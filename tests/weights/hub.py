"""A server on loopback that speaks the file API of the Hugging Face hub, for folders of files."""

import contextlib
import hashlib
import http.server
import json
import threading

COMMIT = 'c0ffee' + '0' * 34


def digests(data):
  """(git's name of a file, its SHA-256)."""
  git = hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()
  return git, hashlib.sha256(data).hexdigest()


class Hub(http.server.ThreadingHTTPServer):
  """repos: {repository: {file name: bytes}}. large: files at least this long are in LFS.

  asked: (name, Range or None) of every file that was sent. cut: names that are cut off halfway when
  they are next sent. damaged: names that are sent with a wrong byte; short: without their last.
  """

  def __init__(self, repos, large=1000):
    super().__init__(('127.0.0.1', 0), _Handler)
    self.repos, self.large, self.asked = repos, large, []
    self.cut, self.damaged, self.short = set(), set(), set()
    self.url = f'http://127.0.0.1:{self.server_port}'


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def log_message(self, *_):
    pass

  def do_GET(self):
    path = self.path.partition('?')[0].strip('/')
    if path.startswith('api/models/'):
      repo = '/'.join(path.split('/')[2:4])
      if repo not in self.server.repos or len(path.split('/')) > 4:
        return self._reply(404, b'{}')
      return self._reply(200, json.dumps(self._info(repo)).encode())
    return self._file(path) if path.count('/') > 3 else self._reply(404, b'{}')

  do_HEAD = do_GET

  def _info(self, repo):
    siblings = []
    for name, data in self.server.repos[repo].items():
      git, sha256 = digests(data)
      entry = {'rfilename': name, 'size': len(data), 'blobId': git}
      if len(data) >= self.server.large:
        entry['lfs'] = {'size': len(data), 'sha256': sha256, 'pointerSize': 134}
      siblings.append(entry)
    return {'id': repo, 'sha': COMMIT, 'siblings': siblings}

  def _file(self, path):
    owner, name, _, _, *parts = path.split('/')
    file = '/'.join(parts)
    data = self.server.repos.get(f'{owner}/{name}', {}).get(file)
    if data is None:
      return self._reply(404, b'', {'X-Error-Code': 'EntryNotFound'})
    git, sha256 = digests(data)
    tag = sha256 if len(data) >= self.server.large else git
    headers = {'ETag': f'"{tag}"', 'X-Repo-Commit': COMMIT, 'Accept-Ranges': 'bytes'}
    if self.command == 'HEAD':
      return self._reply(200, data, headers)
    asked = self.headers.get('Range')
    self.server.asked.append((file, asked))
    start = int(asked.removeprefix('bytes=').partition('-')[0]) if asked else 0
    if file in self.server.damaged:
      data = data[:-1] + bytes([data[-1] ^ 1])
    if file in self.server.short:
      data = data[:-1]
    if asked:
      headers['Content-Range'] = f'bytes {start}-{len(data) - 1}/{len(data)}'
    cut = file in self.server.cut
    self.server.cut.discard(file)
    self._reply(206 if asked else 200, data[start:], headers, cut)

  def _reply(self, code, data, headers=(), cut=False):
    self.send_response(code)
    for name, value in dict(headers).items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(data[: len(data) // 2] if cut else data)
    if cut:
      self.close_connection = True


@contextlib.contextmanager
def serving(repos):
  """Yields the running `Hub`."""
  hub = Hub(repos)
  thread = threading.Thread(target=hub.serve_forever, daemon=True)
  thread.start()
  try:
    yield hub
  finally:
    hub.shutdown()
    hub.server_close()
    thread.join()
