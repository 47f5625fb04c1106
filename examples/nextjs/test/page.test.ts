// The page in a real browser, in front of a running stack whose cache is empty. `make examples` starts both and sets
//   PAGE_URL, IMAGES_URL           where `next start` and Envoy listen
//   METRICS_URL                    Afterimage's metrics
//   IMGPROXY_KEY, IMGPROXY_SALT    what the page was built and started with
//   CHROMIUM                       the browser
//   SCREENSHOT                     the WebP file to write

import assert from "node:assert/strict";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout } from "node:timers/promises";
import { chromium, type Browser, type BrowserContextOptions, type CDPSession, type Page, type Response } from "playwright-core";

const PHOTOS = 6;
const COMMITTED_WITHIN_MS = 30_000;

interface Visitor {
  page: Page;
  devtools: CDPSession;
}

interface Photo {
  url: string;
  status: number;
  type: string | undefined;
  cacheStatus: string | undefined;
}

let browser: Browser;

before(async () => {
  browser = await chromium.launch({ executablePath: setting("CHROMIUM") });
});

after(() => browser.close());

test("every photo loads, and the second time out of the cache", async () => {
  const { page, devtools } = await visitor({ viewport: { width: 1024, height: 900 } });

  // Twice, so that neither imgproxy nor the browser is cold in the times that the page shows.
  await load(page, "/uncached");
  const uncached = await load(page, "/uncached");
  assert.deepEqual(new Set(uncached.map((photo) => photo.cacheStatus)), new Set([undefined]));

  const first = await load(page, "/");
  for (const photo of first) assert.match(photo.cacheStatus ?? "", /^afterimage; fwd=miss; stored$/);
  await committed(PHOTOS);

  const second = await load(page, "/");
  for (const photo of second) assert.match(photo.cacheStatus ?? "", /^afterimage; hit; ttl=\d+$/);

  for (const photo of [...uncached, ...first, ...second]) assert.equal(photo.type, "image/avif");
  for (const photo of second) assert.match(photo.url, /\/rs:fit:320\//);

  // One column of times for each load.
  for (const row of await page.locator("tbody tr").all()) {
    for (const cell of await row.locator("td").all()) assert.match((await cell.textContent()) ?? "", /^\d+$/);
    assert.equal(await row.locator("td").count(), 3);
  }
  await screenshot(page, devtools, setting("SCREENSHOT"));
});

test("a dense screen without AVIF gets larger WebP", async () => {
  const { page, devtools } = await visitor({ viewport: { width: 400, height: 800 }, deviceScaleFactor: 2 });
  await devtools.send("Emulation.setDisabledImageTypes", { imageTypes: ["avif"] });
  for (const photo of await load(page, "/")) {
    assert.equal(photo.type, "image/webp");
    assert.match(photo.url, /\/rs:fit:640\//);
  }
});

test("neither key nor salt reaches the browser", async () => {
  const texts = new Map<string, string>();
  const built = join(import.meta.dirname, "../.next/static");
  for (const entry of await readdir(built, { recursive: true, withFileTypes: true })) {
    if (entry.isFile()) texts.set(entry.name, await readFile(join(entry.parentPath, entry.name), "latin1"));
  }
  assert(texts.size > 0);

  const { page } = await visitor({});
  const sent: Promise<void>[] = [];
  page.on("response", (response) => {
    if (!isPhoto(response.url())) sent.push(response.text().then((text) => void texts.set(response.url(), text)));
  });
  await load(page, "/");
  await Promise.all(sent);
  const html = texts.get(`${setting("PAGE_URL")}/`) ?? "";
  assert.match(html, /rs:fit:320/);

  for (const [name, text] of texts) {
    for (const secret of ["IMGPROXY_KEY", "IMGPROXY_SALT"]) {
      for (const encoding of ["hex", "base64", "base64url"] as const) {
        const form = Buffer.from(setting(secret), "hex").toString(encoding);
        assert(!text.includes(form), `${secret} is in ${name}`);
      }
    }
  }
});

/** A new browser profile, whose own cache is off: what it gets, it got from Envoy. */
async function visitor(options: BrowserContextOptions): Promise<Visitor> {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  const devtools = await context.newCDPSession(page);
  await devtools.send("Network.enable");
  await devtools.send("Network.setCacheDisabled", { cacheDisabled: true });
  return { page, devtools };
}

/** Opens the page, waits for all photos and the table, and returns what Envoy said to each photo. */
async function load(page: Page, path: string): Promise<Photo[]> {
  const photos: Photo[] = [];
  const listen = (response: Response) => {
    const headers = response.headers();
    photos.push({
      url: response.url(),
      status: response.status(),
      type: headers["content-type"],
      cacheStatus: headers["cache-status"],
    });
  };
  page.on("response", listen);
  await page.goto(setting("PAGE_URL") + path);
  await page.waitForFunction(() => [...document.images].every((image) => image.complete));
  const widths = await page.evaluate(() => [...document.images].map((image) => image.naturalWidth));
  await page.locator("table").waitFor();
  page.off("response", listen);

  const answers = photos.filter((photo) => isPhoto(photo.url));
  assert.deepEqual(answers.map((photo) => photo.status), Array(PHOTOS).fill(200));
  assert.equal(widths.length, PHOTOS);
  assert(widths.every((width) => width > 0), `not every photo is there: ${widths}`);
  return answers;
}

/** Waits until Afterimage has stored so many photos, which is a moment after the browser has them. */
async function committed(count: number): Promise<void> {
  const deadline = AbortSignal.timeout(COMMITTED_WITHIN_MS);
  for (;;) {
    const metrics = await (await fetch(setting("METRICS_URL"), { signal: deadline })).text();
    const fills = metrics.match(/^afterimage_fills_total\{.*result="committed".*\} (\d+)$/m);
    if (Number(fills?.[1]) >= count) return;
    await setTimeout(10, undefined, { signal: deadline });
  }
}

async function screenshot(page: Page, devtools: CDPSession, path: string): Promise<void> {
  const box = await page.locator("main").boundingBox();
  assert(box);
  const { data } = await devtools.send("Page.captureScreenshot", {
    format: "webp",
    quality: 80,
    captureBeyondViewport: true,
    clip: { ...box, scale: 1 },
  });
  await writeFile(path, data, "base64");
}

function isPhoto(url: string): boolean {
  return url.startsWith(setting("IMAGES_URL"));
}

function setting(name: string): string {
  const value = process.env[name];
  assert(value, `${name} is not set`);
  return value;
}
