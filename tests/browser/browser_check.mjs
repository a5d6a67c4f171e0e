// Drives ComfyUI's real page in a headless Chromium: open a workflow, press Run, see the result.
//
//   node browser_check.mjs URL --shot FILE.png (--drop FILE | --template NAME --source PACK)
//        [--show TYPE,TYPE] [--play] [--no-run] [--timeout SECONDS]
//
// --drop drops a file on the canvas as a user does; --template opens a pack's template by its address.
// --show: node types that have to display a picture or a video after the run.
// --play: the videos are played to their end, and what came out of them is reported.
// Prints one JSON report. Exit 0 only if every node type is known and the run ended well.
import { parseArgs } from 'node:util'
import { launch, openEditor, openFile, openPage, ownErrors, run, settled, showGraph } from './page.mjs'

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    shot: { type: 'string' },
    drop: { type: 'string' },
    template: { type: 'string' },
    source: { type: 'string' },
    show: { type: 'string', default: '' },
    play: { type: 'boolean', default: false },
    'no-run': { type: 'boolean', default: false },
    timeout: { type: 'string', default: '120' }
  }
})
const url = positionals[0]
const timeout = Number(options.timeout) * 1000
if (!url || !options.shot || !(options.drop || (options.template && options.source))) {
  throw new Error('usage: browser_check.mjs URL --shot FILE (--drop FILE | --template NAME --source PACK)')
}

async function openWorkflow(page) {
  const query = options.template
    ? `?${new URLSearchParams({ template: options.template, source: options.source })}`
    : ''
  await openEditor(page, url, query)
  if (options.drop) return openFile(page, options.drop)
  await page.waitForFunction(() => window.app.graph.nodes.length > 0)
  await settled(page)
}

const graphState = (page) =>
  page.evaluate(() => {
    const nodes = window.app.graph.nodes
    const known = window.LiteGraph.registered_node_types
    const lists = nodes.flatMap((node) =>
      (node.widgets ?? [])
        .filter((w) => Array.isArray(w.options?.values) && !w.options.values.includes(w.value))
        .map((w) => `${node.type}.${w.name} = ${w.value}`)
    )
    return {
      nodes: nodes.map((node) => node.type),
      links: Object.keys(window.app.graph.links).length,
      unknown: nodes.map((node) => node.type).filter((type) => !(type in known)),
      not_in_list: lists,
      dialogs: [...document.querySelectorAll('[role="dialog"]')].map((d) => d.innerText.slice(0, 500))
    }
  })

// What each node displays: loaded pictures with their sizes, and videos.
const displayed = (page) =>
  page.evaluate(() =>
    window.app.graph.nodes.map((node) => ({
      type: node.type,
      pictures: (node.imgs ?? []).filter((i) => i.complete).map((i) => [i.naturalWidth, i.naturalHeight]),
      videos: node.videoContainer ? node.videoContainer.querySelectorAll('video').length : 0
    }))
  )

async function waitForDisplay(page, types) {
  const end = Date.now() + 15000
  for (;;) {
    const nodes = await displayed(page)
    const visible = (type) =>
      nodes.some((n) => n.type === type && (n.videos || n.pictures.some(([width]) => width > 0)))
    const lacking = types.filter((type) => !visible(type))
    if (!lacking.length) return nodes
    if (Date.now() > end) throw new Error(`nothing is displayed in ${lacking}`)
    await page.waitForTimeout(200)
  }
}

// Every displayed video, played from its start to its end: what the browser decoded, and the colour in
// the middle of its last frame.
const played = (page) =>
  page.evaluate(async () => {
    const play = async ({ type, videoContainer }) => {
      const video = document.createElement('video')
      const events = []
      for (const kind of ['loadeddata', 'ended', 'error']) {
        video.addEventListener(kind, () => events.push(kind))
      }
      video.muted = true
      video.src = videoContainer.querySelector('video').currentSrc
      await video.play().catch((error) => events.push(String(error)))
      const end = Date.now() + 20000
      while (!events.includes('ended') && !video.error && Date.now() < end) {
        await new Promise((resolve) => setTimeout(resolve, 50))
      }
      const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 })
      const middle = [video.videoWidth / 2, video.videoHeight / 2, 1, 1]
      const context = canvas.getContext('2d')
      context.drawImage(video, ...middle, 0, 0, 1, 1)
      return {
        type,
        events,
        error: video.error?.message ?? null,
        size: [video.videoWidth, video.videoHeight],
        duration: video.duration,
        time: video.currentTime,
        frames: video.getVideoPlaybackQuality().totalVideoFrames,
        sound: video.webkitAudioDecodedByteCount,
        colour: [...context.getImageData(0, 0, 1, 1).data].slice(0, 3)
      }
    }
    const videos = window.app.graph.nodes.filter((node) => node.videoContainer?.querySelector('video'))
    const reports = []
    for (const node of videos) reports.push(await play(node))
    return reports
  })

async function check(page, report) {
  await openWorkflow(page)
  Object.assign(report, await graphState(page))
  await showGraph(page)
  if (report.unknown.length) throw new Error(`unknown node types: ${report.unknown}`)
  if (!options['no-run']) {
    report.run = await run(page)
    if (report.run.end !== 'execution_success') {
      const reason = report.run.error ?? JSON.stringify(report.run.node_errors)
      throw new Error(`the run ended in ${report.run.end ?? 'a refusal'}: ${reason}`)
    }
    report.displayed = await waitForDisplay(page, options.show.split(',').filter(Boolean))
    if (options.play) report.played = await played(page)
    await showGraph(page)
  }
  const own = ownErrors(report.page_errors)
  if (own.length) throw new Error(`errors in the pack's scripts: ${own}`)
}

const report = { page_errors: [], failure: null }
const browser = await launch()
try {
  const page = await openPage(browser, url, { errors: report.page_errors, timeout })
  try {
    await check(page, report)
  } catch (error) {
    report.failure = error.message
    process.exitCode = 1
  }
  await page.screenshot({ path: options.shot })
} finally {
  await browser.close()
}
console.log(JSON.stringify(report))
