# Text-to-text search via BERT: the guide's code, line for line and in its order.
#
# It needs a running server (`finetuner serve`), data stored under the three names below, and
# `eval "$(finetuner env)"` in the shell, so that docarray's `pull` asks that server.

from docarray import DocumentArray

train_data = DocumentArray.pull('quora_train.da')
query_data = DocumentArray.pull('quora_query_dev.da')
index_data = DocumentArray.pull('quora_index_dev.da')

train_data.summary()

import finetuner
from finetuner.callback import EvaluationCallback

# Make sure to login to Jina AI Cloud
finetuner.login()  # use finetuner.notebook_login() in Jupyter notebook or Google Colab

# Start fine-tuning as a run within an experiment
run = finetuner.fit(
    model='bert-base-cased',
    train_data='quora_train.da',
    run_name='finetune-quora-dataset-bert-base-cased',
    loss='TripletMarginLoss',
    optimizer='Adam',
    learning_rate = 1e-5,
    epochs=3,
    batch_size=128,
    device='cuda',
    callbacks=[
        EvaluationCallback(
            query_data='quora_query_dev.da',
            index_data='quora_index_dev.da',
            batch_size=32
        )
    ]
)

print(run.status())

import finetuner

finetuner.login()  # use finetuner.notebook_login() in Jupyter notebook or Google Colab
run = finetuner.get_run('finetune-quora-dataset-bert-base-cased')
print(f'Run status: {run.status()}')

# Here the guide waits, "since some runs might take up to several hours"; these two lines do.
for _ in run.stream_logs():
    pass

import finetuner

finetuner.login()  # use finetuner.notebook_login() in Jupyter notebook or Google Colab
run = finetuner.get_run('finetune-quora-dataset-bert-base-cased')
print(f'Run logs: {run.logs()}')

artifact = run.save_artifact('bert-model')

from docarray import Document, DocumentArray

# Prepare some text to encode
test_da = DocumentArray([Document(text='some text to encode')])
# Load model from artifact
model = finetuner.get_model(artifact=artifact, device='cuda')
# Encoding will happen in-place in your `DocumentArray`
finetuner.encode(model=model, data=test_da)
print(test_da.embeddings.shape)
