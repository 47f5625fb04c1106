// Runs all tests of a checkout of cache-tests against one cache.
//
//   node run.mjs CHECKOUT BASE_URL RESULTS
//
// RESULTS becomes a JSON list of {id, suite, kind, outcome, message}: the kinds are required, optimal and check, the outcomes
// are the checkout's own (pass, fail, setup_fail, yes, no, ...), and the message is null where there is nothing to say.
import { writeFile } from 'node:fs/promises'
import { pathToFileURL } from 'node:url'

const [checkout, base, results] = process.argv.slice(2)
const load = file => import(new URL(file, pathToFileURL(`${checkout}/`)))

const { getResults, runTests } = await load('test-engine/client/runner.mjs')
const { determineTestResult, resultTypes } = await load('test-engine/lib/results.mjs')
const { default: suites } = await load('tests/index.mjs')

await runTests(suites, false, base)

const found = getResults()
const outcomeOf = id => {
  const type = determineTestResult(suites, id, found)
  return Object.keys(resultTypes).find(name => resultTypes[name] === type)
}
const report = suites.flatMap(suite => suite.tests.filter(({ id }) => id in found).map(test => ({
  id: test.id,
  suite: suite.id,
  kind: test.kind ?? 'required',
  outcome: outcomeOf(test.id),
  message: found[test.id] === true ? null : found[test.id][1]
})))
await writeFile(results, JSON.stringify(report))
