// ComfyUI's page in a headless Chromium: what every check here does with it. CHROMIUM is the browser to start.
import fs from 'node:fs'
import path from 'node:path'
import { chromium } from 'playwright-core'

const MIME = {
  '.json': 'application/json',
  '.png': 'image/png',
  '.webp': 'image/webp',
  '.mp4': 'video/mp4',
  '.webm': 'video/webm'
}
const ENDS = ['execution_success', 'execution_error', 'execution_interrupted']
// Nothing of a first visit that would cover the canvas, and nodes that are drawn.
const SETTINGS = {
  'Comfy.TutorialCompleted': true,
  'Comfy.UseNewMenu': 'Top',
  'Comfy.Workflow.ShowMissingModelsWarning': false,
  'Comfy.Notification.ShowVersionUpdates': false,
  'Comfy.VueNodes.Enabled': false,
  'Comfy.Minimap.Visible': false
}

export const launch = () =>
  chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync']
      .concat(['--disable-background-networking', '--disable-component-update'])
      .concat(['--use-angle=swiftshader', '--enable-unsafe-swiftshader'])
  })

/** A new page that reaches the server only; what its scripts throw is added to `errors`. */
export async function openPage(browser, url, { errors, timeout, settings = {} }) {
  const context = await browser.newContext({ viewport: { width: 1600, height: 950 } })
  const origin = new URL(url).origin
  await context.route('**/*', (route) => {
    const local = [origin, 'data:', 'blob:'].some((start) => route.request().url().startsWith(start))
    return local ? route.continue() : route.abort()
  })
  await context.request.post(`${origin}/settings`, { data: { ...SETTINGS, ...settings } })
  const page = await context.newPage()
  page.setDefaultTimeout(timeout)
  page.on('pageerror', (error) => errors.push(String(error.stack ?? error)))
  return page
}

/** Opens the server's page, with a query, and waits until nodes can be made. */
export async function openEditor(page, url, query = '') {
  await page.goto(url + '/' + query, { waitUntil: 'domcontentloaded' })
  await page.locator('#graph-canvas').waitFor({ state: 'visible' })
  await page.waitForFunction(
    () => window.app?.graph && Object.keys(window.LiteGraph.registered_node_types).length > 100
  )
}

/** Puts a file on the canvas as a user drops it, in place of what is there. */
export async function openFile(page, file) {
  await settled(page)
  await page.evaluate(() => window.app.graph.clear())
  await dropFile(page, file)
  await page.waitForFunction(() => window.app.graph.nodes.length > 0)
  await settled(page)
}

/** The start page loads its own workflow some time after the canvas is there. */
export async function settled(page) {
  let before = ''
  for (;;) {
    const now = await page.evaluate(() => JSON.stringify(window.app.graph.nodes.map((n) => n.id)))
    if (now === before) return
    before = now
    await page.waitForTimeout(1000)
  }
}

async function dropFile(page, file) {
  const type = MIME[path.extname(file)]
  const content = { data: fs.readFileSync(file).toString('base64'), name: path.basename(file), type }
  await page.evaluate(({ data, name, type }) => {
    const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0))
    const dataTransfer = new DataTransfer()
    dataTransfer.items.add(new File([bytes], name, { type }))
    const canvas = document.querySelector('#graph-canvas')
    const { x, y, width, height } = canvas.getBoundingClientRect()
    const place = { clientX: x + width / 2, clientY: y + height / 2 }
    for (const event of ['dragenter', 'dragover', 'drop']) {
      const init = { bubbles: true, cancelable: true, dataTransfer, ...place }
      canvas.dispatchEvent(new DragEvent(event, init))
    }
  }, content)
}

/** Fits the whole graph into the view. */
export async function showGraph(page) {
  await page.keyboard.press('Escape')
  await page.evaluate(() => {
    const { canvas, graph } = window.app
    canvas.selectItems(graph.nodes)
    canvas.fitViewToSelectionAnimated({ duration: 1 })
  })
  await page.waitForTimeout(500)
  await page.evaluate(() => {
    window.app.canvas.deselectAll()
    window.app.canvas.setDirty(true, true)
  })
}

/** Presses Run and waits for the end; also of what the server refuses. */
export async function run(page) {
  await page.evaluate(
    ([ends]) => {
      window.seen = { counts: {}, end: null, error: null, outputs: {} }
      const kinds = ['execution_cached', 'executing', 'progress', 'b_preview', 'executed', ...ends]
      for (const kind of kinds) {
        window.app.api.addEventListener(kind, ({ detail }) => {
          window.seen.counts[kind] = (window.seen.counts[kind] ?? 0) + 1
          if (kind === 'executed') window.seen.outputs[detail.node] = detail.output
          if (kind === 'execution_error') window.seen.error = detail.exception_message
          if (ends.includes(kind)) window.seen.end = kind
        })
      }
    },
    [ENDS]
  )
  await page.getByRole('button', { name: /^Run\b/ }).first().click()
  await page.waitForFunction(
    () => window.seen.end || Object.keys(window.app.lastNodeErrors ?? {}).length
  )
  return page.evaluate(() => ({ ...window.seen, node_errors: window.app.lastNodeErrors }))
}

/** Errors thrown by scripts of packs, not by ComfyUI's own. */
export const ownErrors = (errors) => errors.filter((error) => /\/extensions\/(?!core\/)/.test(error))
