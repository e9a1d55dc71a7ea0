// The main process of a desktop program, as Electron has one. Its windows ask by messages
// { id, method, params } (ipcMain.handle in Electron, the channel of child_process.fork here) and get
// { id, result } or { id, error }. The models run in a process of their own: when that dies, requests
// that were under way end with an error, and the next one works.
import { createEngine } from 'kr-serve';

const engine = await createEngine({ transport: 'child' });
const tell = (message) => process.connected && process.send(message);

// What happens to the runtime is news for the windows, not the end of the program.
engine.on('runtime:status', ({ status }) => tell({ event: 'runtime:status', status }));
engine.on('error', ({ error }) => console.error(`${error.code}: ${error.message}`));

const methods = {
  load: (params) => engine.loadModel(params).then((handle) => handle.descriptor.id),
  generate: (params) => engine.generate(params),
  streams: () => engine.getStreamMetrics().activeStreams,
  info: () => engine.getRuntimeInfo(),
};

process.on('message', async ({ id, method, params }) => {
  try {
    tell({ id, result: await methods[method](params) });
  } catch (error) {
    tell({ id, error: { code: error.code, message: error.message } });
  }
});
// The last window has closed.
process.on('disconnect', () => engine.dispose());
tell({ event: 'ready' });
