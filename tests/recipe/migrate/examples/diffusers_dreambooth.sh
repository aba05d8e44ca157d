MODEL_NAME="CompVis/stable-diffusion-v1-4"
INSTANCE_DIR="dog"
accelerate launch train_dreambooth_lora.py \
  --pretrained_model_name_or_path=$MODEL_NAME --instance_data_dir=$INSTANCE_DIR \
  --class_data_dir="class" --with_prior_preservation --prior_loss_weight=0.5 \
  --instance_prompt="a photo of sks dog" --class_prompt="a photo of dog" --num_class_images=200 \
  --resolution=512 --train_batch_size=1 --gradient_accumulation_steps=1 --checkpointing_steps=100 \
  --learning_rate=1e-4 --lr_scheduler="linear" --max_train_steps=500 --validation_prompt="A photo of sks dog in a bucket" \
  --validation_epochs=50 --seed="0" --push_to_hub --output_dir="path_to_saved_model" --adam_beta2=0.99 --adam_weight_decay=0.02
