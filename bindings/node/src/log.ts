// What the engine has to say without being asked goes to stderr, from the level of KR_MLX_LOG_LEVEL
// (debug, info, warn, error, none; info when absent) on.
import type { Logger } from './types.js';

const LEVELS = ['debug', 'info', 'warn', 'error', 'none'] as const;

export function defaultLogger(): Logger {
  const asked = (process.env['KR_MLX_LOG_LEVEL'] ?? 'info').toLowerCase();
  const level = LEVELS.findIndex((name) => name === asked);
  const from = level < 0 ? LEVELS.indexOf('info') : level;
  const at = (index: number) => (message: string): void => {
    if (index >= from) process.stderr.write(`${message}\n`);
  };
  return { debug: at(0), info: at(1), warn: at(2), error: at(3) };
}
