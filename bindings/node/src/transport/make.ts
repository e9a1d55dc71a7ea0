// Which transport an engine gets, and with which options of the runtime.
import type { Config } from '../config.js';
import { EngineClientError } from '../errors.js';
import type { EngineOptions, Logger } from '../types.js';
import { ChildTransport } from './child.js';
import { InProcessTransport } from './in-process.js';
import type { Transport } from './transport.js';

const MIB = 1024 * 1024;

/** The options of `kr runtime` that say what the surface's own options ask for. */
export function runtimeArgs(options: EngineOptions, config: Config): string[] {
  const { cache, cacheDir } = options;
  const args: string[] = [];
  if ((cache?.enabled ?? config.cache.enabled) === false) args.push('--no-cache');
  const folder = cache?.cacheDir ?? cacheDir ?? config.cache.cache_dir;
  if (folder !== undefined) args.push('--cache-dir', folder);
  const bytes = cache?.maxSizeBytes ?? config.cache.max_size_bytes;
  if (bytes !== undefined) args.push('--cache-size', String(Math.max(1, Math.floor(bytes / MIB))));
  return [...args, ...(options.runtime?.args ?? [])];
}

export function makeTransport(options: EngineOptions, config: Config, logger: Logger): Transport {
  const args = runtimeArgs(options, config);
  if (args.some((arg) => /^--socket(=|$)/.test(arg))) {
    throw new EngineClientError('InvalidParams',
      'runtime.args: with --socket the runtime would not listen to this program',
      { field: 'runtime.args' });
  }
  if (options.transport === 'in-process') {
    const { env, cwd } = options.runtime ?? {};
    const childs = Object.entries({
      krPath: options.krPath, 'runtime.env': env, 'runtime.cwd': cwd,
    }).find(([, value]) => value !== undefined);
    if (childs !== undefined) {
      const [field] = childs;
      throw new EngineClientError('InvalidParams',
        `${field} is of a child process: transport 'in-process' has this one's`, { field });
    }
    return new InProcessTransport({ args });
  }
  return new ChildTransport({
    krPath: options.krPath ?? process.env['KR_PATH'] ?? 'kr', args,
    env: options.runtime?.env, cwd: options.runtime?.cwd,
    maxMessageBytes: config.json_rpc.max_line_buffer_size,
    shutdownTimeoutMs: config.runtime.shutdown_timeout_ms,
    onLog: (line) => logger.debug(line),
  });
}
