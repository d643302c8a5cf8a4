// Opens pages in a headless Chromium, and prints what they did and how they can be read: `node pages.js FOLDER NAME URL…`. Saves
// pictures of them in the folder.
import { accessSync, constants } from 'node:fs';
import { createRequire } from 'node:module';
import { delimiter, join } from 'node:path';

const require = createRequire(`${process.cwd()}/`);
const { chromium } = require('playwright-core');
const { source: axe } = require('axe-core');

const BROWSERS = ['chromium-headless-shell', 'chromium', 'chromium-browser', 'google-chrome'];
const PHONE = { width: 390, height: 844 };
const DESK = { width: 1280, height: 800 };
const VIEWS = {
  phone: { viewport: PHONE, colorScheme: 'light' },
  desk: { viewport: DESK, colorScheme: 'dark' },
  // Without its content security policy, only its text protects a page.
  unprotected: { viewport: DESK, colorScheme: 'light', bypassCSP: true },
};

function executable() {
  const folders = process.env.PATH.split(delimiter);
  for (const path of BROWSERS.flatMap((name) => folders.map((folder) => join(folder, name)))) {
    try {
      accessSync(path, constants.X_OK);
      return path;
    } catch {}
  }
  throw new Error(`none of ${BROWSERS.join(', ')} is on the path; \`./test --full\` installs the first`);
}

async function visit(context, url, picture) {
  const seen = { dialogs: [], requests: [], errors: [], barriers: [] };
  context.on('dialog', async (dialog) => {
    seen.dialogs.push(dialog.message());
    await dialog.dismiss();
  });
  context.on('request', (request) => request.url() === url || seen.requests.push(request.url()));
  context.on('console', (message) => message.type() === 'error' && seen.errors.push(message.text()));
  const page = await context.newPage();
  await page.goto(url);
  seen.is_too_wide = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
  await page.screenshot({ path: picture, fullPage: true });
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run({ resultTypes: ['violations'] }));
  seen.barriers = violations.map(({ id, nodes }) => `${id}: ${nodes[0].html}`);
  return seen;
}

const [folder, ...pages] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: executable() });
const visits = [];
for (let n = 0; n < pages.length; n += 2) {
  const [page, address] = pages.slice(n, n + 2);
  const url = new URL(address);
  const { username, password } = url;
  url.username = url.password = '';
  for (const [view, options] of Object.entries(VIEWS)) {
    const httpCredentials = username ? { username, password } : undefined;
    const context = await browser.newContext({ ...options, httpCredentials });
    visits.push({ page, view, ...(await visit(context, url.href, join(folder, `${page}-${view}.png`))) });
    await context.close();
  }
}
await browser.close();
console.log(JSON.stringify(visits));
